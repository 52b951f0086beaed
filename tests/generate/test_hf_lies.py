"""Tests of Hugging Face folders whose files lie: refused in one line, whatever they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import spm
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hf_tokenizer import BYTE_LEVEL, UNIGRAM, write

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.generate.tokenizer import Tokenizer, files_from_hf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("document", "settings", "error"),
    [
        ({**BYTE_LEVEL, "model": {"type": "WordPiece", "vocab": {}}}, {}, UnsupportedModel),
        ({**BYTE_LEVEL, "decoder": {"type": "WordPiece"}}, {}, UnsupportedModel),
        ({**BYTE_LEVEL, "decoder": None}, {}, UnsupportedModel),
        ({**BYTE_LEVEL, "model": None}, {}, CorruptModel),
        ({**BYTE_LEVEL, "model": {"type": "BPE", "vocab": {"a": "b"}}}, {}, CorruptModel),
        ({**BYTE_LEVEL, "added_tokens": [{"id": 1}]}, {}, CorruptModel),
        ({**BYTE_LEVEL, "added_tokens": [spm.added(7, "<x>")]}, {}, CorruptModel),
        ({**UNIGRAM, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, {},
         CorruptModel),
        ([], {}, CorruptModel),
        (b"{", {}, CorruptModel),
        (BYTE_LEVEL, {"added_tokens_decoder": {"x": {}}}, CorruptModel),
        (BYTE_LEVEL, {"added_tokens_decoder": []}, CorruptModel),
        (BYTE_LEVEL, {"added_tokens_decoder": {"1": {"content": "<other>"}}}, CorruptModel),
        (BYTE_LEVEL, {"bos_token": 1}, CorruptModel),
        (BYTE_LEVEL, {"add_bos_token": "yes"}, CorruptModel),
        (BYTE_LEVEL, {"chat_template": 7}, CorruptModel),
        (BYTE_LEVEL, {"chat_template": [{"name": "default"}]}, CorruptModel),
        (BYTE_LEVEL, {"chat_template": "x" * (2 << 20)}, CorruptModel),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_lies_are_refused_in_one_line(
    document: Any, settings: dict[str, Any], error: type[FlashError], folder: Path
) -> None:
    with pytest.raises(error) as caught:
        write(folder, document, **settings)
    assert "\n" not in str(caught.value)


def test_a_tiktoken_file_is_named_as_such(folder: Path) -> None:
    spm.write_folder(folder, {"tokenizer.model": b"IQ== 0\nIg== 1\n"})
    with pytest.raises(UnsupportedModel, match="tiktoken"):
        files_from_hf(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
KEYS = {
    "tokenizer_config.json": ["bos_token", "eos_token", "added_tokens_decoder", "chat_template",
                              "add_bos_token", "additional_special_tokens"],
    "generation_config.json": ["eos_token_id", "temperature", "top_k"],
    "config.json": ["eos_token_id", "bos_token_id", "text_config"],
    "special_tokens_map.json": ["bos_token", "eos_token", "additional_special_tokens"],
    "added_tokens.json": ["<x>", "1"],
    "tokenizer.json": ["model", "added_tokens", "decoder", "post_processor", "normalizer",
                       "pre_tokenizer", "truncation", "version"],
}  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(sorted(KEYS)), st.data())
def test_any_json_is_refused_or_works(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    base = BYTE_LEVEL if name == "tokenizer.json" else {}
    document = {**base, data.draw(st.sampled_from(KEYS[name])): data.draw(JSON)}
    if data.draw(st.booleans()):
        document = data.draw(JSON)
    folder = tmp_path_factory.mktemp("fuzz")
    files = {"tokenizer.json": BYTE_LEVEL, name: document}
    try:
        made = Tokenizer.from_files(files_from_hf(spm.write_folder(folder, files)))
    except FlashError as error:
        assert "\n" not in str(error)
        return
    made.decode(made.encode("any <|im_start|> text", special=True))
