"""Tests of GGUF metadata that lies about the tokeniser, whatever the type of its values."""

from __future__ import annotations

from typing import Any

import fake_decoder
import pytest
import spm
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf

METADATA = {
    "gpt2": tiny.tokenizer_metadata(fake_decoder.VOCAB),
    "llama": spm.metadata(spm.model("bpe")),
    "t5": spm.metadata(spm.model("unigram with rules")),
}
SCALAR = (
    st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | st.text(max_size=6)
    | st.just("\ud800")
)
VALUE = SCALAR | st.none() | st.lists(SCALAR, max_size=4) | st.binary(max_size=4)


@settings(max_examples=300)
@given(st.sampled_from(sorted(METADATA)), st.data())
def test_any_metadata_is_refused_or_works(kind: str, data: st.DataObject) -> None:
    metadata = dict(METADATA[kind])
    key = data.draw(st.sampled_from(sorted(metadata)))
    old = metadata[key]
    if isinstance(old, list) and old and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(old) - 1))
        metadata[key] = [*old[:at], data.draw(SCALAR | st.sampled_from(old)), *old[at + 1 :]]
    else:
        metadata[key] = data.draw(VALUE)
    try:
        made = Tokenizer.from_files(files_from_gguf(metadata))
    except FlashError as error:
        assert "\n" not in str(error)
        return
    made.decode(made.encode("any <|im_start|> text ½", special=True))


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"scores": None}, CorruptModel),
        ({"scores": [0.0]}, CorruptModel),
        ({"scores": "abc"}, CorruptModel),
        ({"unknown_token_id": 10**9}, CorruptModel),
        ({"add_space_prefix": "yes"}, CorruptModel),
        ({"precompiled_charsmap": [1, 2, 3]}, CorruptModel),
        ({"precompiled_charsmap": ["a"]}, CorruptModel),
        ({"model": "bert"}, UnsupportedModel),
        ({"model": ["llama"]}, UnsupportedModel),
    ],
)
def test_lies_are_refused(kind: str, changes: dict[str, Any], error: type[FlashError]) -> None:
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(error):
        files_from_gguf({**METADATA[kind], **keys})


def test_one_unknown_token_is_chosen_and_others_are_never_made() -> None:
    keys = dict(METADATA["llama"])
    types = keys["tokenizer.ggml.token_type"]
    filler = len(types)
    keys["tokenizer.ggml.tokens"] = [*keys["tokenizer.ggml.tokens"], "[PAD]", "zq"]
    keys["tokenizer.ggml.token_type"] = [*types, 2, 5]
    keys["tokenizer.ggml.scores"] = [*keys["tokenizer.ggml.scores"], -10000.0, 0.0]
    ours = Tokenizer.from_files(files_from_gguf(keys))
    ids = ours.encode("zq [PAD] zq")
    assert not {filler, filler + 1} & set(ids)
    assert ours.decode(ids) == "zq [PAD] zq"
