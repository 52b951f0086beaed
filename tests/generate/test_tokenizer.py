"""Tests of text to ids and back: against a plain-Python twin, on hard text, and on lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpe_twin
import fake_decoder
import pytest
import tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, InvalidInput, ModelIOError, UnsupportedModel
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf, replace_surrogates

METADATA = tiny.tokenizer_metadata(fake_decoder.VOCAB)
HARD = [
    "",
    " ",
    "  \n\n\t x",
    "don't we'll they've I'M 'tis ''s",
    "1234 x1y2 ½ ٣٤ Ⅷ",
    "naïve café é e\u0301",
    "Ελληνικά русский עברית العربية हिन्दी ไทย 中文 日本語 한국어",
    "👩‍👩‍👧‍👦 😀 🇫🇷 ✈️",
    "def f(x):\n\treturn {'a': x**2}  # ok\r\n",
    "\u200b\ufeff\u00a0\u3000\x00\x07\x1c\x1f",
    "<|im_start|>system\n<|im_end|>",
    "a" * 500,
]


def write_files(folder: Path, **changes: Any) -> Path:
    for name, data in files_from_gguf({**METADATA, **changes}).items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("text", HARD)
def test_ids_are_those_of_the_twin(text: str) -> None:
    assert fake_decoder.tokenizer().encode(text) == bpe_twin.encode(text, METADATA)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=60))
def test_any_text_gives_the_twins_ids_and_comes_back(text: str) -> None:
    tokenizer = fake_decoder.tokenizer()
    ids = tokenizer.encode(text)
    assert ids == bpe_twin.encode(text, METADATA)
    assert tokenizer.decode(ids) == text


@settings(max_examples=200)
@given(st.binary(max_size=40))
@example("😀".encode()[:3] + "é".encode()[:1])
def test_broken_utf8_never_crashes_and_counts_as_replacement_characters(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    tokenizer = fake_decoder.tokenizer()
    clean = replace_surrogates(text)
    assert tokenizer.encode(text) == tokenizer.encode(clean)
    assert len(clean) == len(text)
    assert tokenizer.decode(tokenizer.encode(text)) == clean


def test_surrogate_pairs_become_the_character_they_mean() -> None:
    assert replace_surrogates("\ud83d\ude00 \ud83d") == "😀 �"


@settings(max_examples=100)
@given(st.lists(st.integers(0, fake_decoder.VOCAB - 1), max_size=40))
def test_streaming_gives_the_same_text_and_never_half_a_character(ids: list[int]) -> None:
    tokenizer = fake_decoder.tokenizer()
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


def test_an_emoji_by_bytes_comes_out_whole() -> None:
    tokenizer = fake_decoder.tokenizer()
    ids = tokenizer.encode("😀")
    assert len(ids) == 4
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["", "", "", "😀"]
    assert stream.finish() == ""


def test_ids_that_pad_the_models_vocabulary_have_no_text() -> None:
    stream = fake_decoder.tokenizer().stream()
    assert stream.push(fake_decoder.VOCAB) == ""


def test_control_tokens_are_parsed_on_request_only() -> None:
    tokenizer = fake_decoder.tokenizer()
    text = "a<|im_start|>b"
    parsed = tokenizer.encode(text, special=True)
    plain = tokenizer.encode(text)
    assert parsed == [*tokenizer.encode("a"), 1, *tokenizer.encode("b")]
    assert not set(plain) & set(tokenizer.control_tokens.values())
    assert tokenizer.decode(plain) == text
    assert tokenizer.decode(parsed) == "ab"
    assert tokenizer.decode(parsed, special=True) == text


@given(st.lists(st.sampled_from(["<", "|", "<|", "im_start", "|>", "<|im_end|>", "<|endoftext|>"])))
def test_no_text_yields_a_control_token(pieces: list[str]) -> None:
    tokenizer = fake_decoder.tokenizer()
    assert not set(tokenizer.encode("".join(pieces))) & set(tokenizer.control_tokens.values())


def test_a_vocabulary_that_merges_its_way_to_a_control_token_cannot_inject_it(
    tmp_path: Path,
) -> None:
    tokens = [*METADATA["tokenizer.ggml.tokens"], "|>"]
    types = [*METADATA["tokenizer.ggml.token_type"], 3]
    merges = [*METADATA["tokenizer.ggml.merges"], "| >"]
    write_files(
        tmp_path,
        **{
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": merges,
        },
    )
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.control_tokens["|>"] not in tokenizer.encode("a |> b")


def test_user_defined_tokens_are_whole_and_visible(tmp_path: Path) -> None:
    tokens = [*METADATA["tokenizer.ggml.tokens"], "<think>"]
    types = [*METADATA["tokenizer.ggml.token_type"], 4]
    write_files(tmp_path, **{"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types})
    tokenizer = Tokenizer.from_dir(tmp_path)
    ids = tokenizer.encode("so <think> well")
    assert len(tokens) - 1 in ids
    assert tokenizer.decode(ids) == "so <think> well"


def test_replies_end_at_eos_and_at_named_control_tokens() -> None:
    tokenizer = fake_decoder.tokenizer()
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.eos_id == 2
    assert tokenizer.bos_id == 1


def test_bos_is_added_only_where_the_model_wants_it(tmp_path: Path) -> None:
    assert fake_decoder.tokenizer().encode("a", add_bos=True)[0] != 1
    tokenizer = Tokenizer.from_dir(write_files(tmp_path, **{"tokenizer.ggml.add_bos_token": True}))
    assert tokenizer.encode("a", add_bos=True)[0] == 1
    assert tokenizer.encode("a")[0] != 1


def test_an_id_out_of_range_is_refused() -> None:
    for token in (-1, fake_decoder.VOCAB):
        with pytest.raises(InvalidInput, match="not in the vocabulary"):
            fake_decoder.tokenizer().decode([token])


@pytest.mark.parametrize("pre", ["default", "gpt-2", "llama-bpe", "qwen2", "smollm", "starcoder"])
@pytest.mark.parametrize("text", HARD)
def test_every_pre_tokeniser_keeps_the_text(pre: str, text: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(write_files(tmp_path, **{"tokenizer.ggml.pre": pre}))
    expected = text.replace("e\u0301", "é") if pre == "qwen2" else text
    assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"tokenizer.ggml.pre": "no-such"}, UnsupportedModel),
        ({"tokenizer.ggml.pre": 7}, CorruptModel),
        ({"tokenizer.ggml.model": "bert"}, UnsupportedModel),
        ({"tokenizer.ggml.model": None}, CorruptModel),
        ({"tokenizer.ggml.tokens": []}, CorruptModel),
        ({"tokenizer.ggml.tokens": "abc"}, CorruptModel),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, CorruptModel),
        ({"tokenizer.ggml.tokens": [1, 2]}, CorruptModel),
        ({"tokenizer.ggml.token_type": [1]}, CorruptModel),
        ({"tokenizer.ggml.token_type": [9] * fake_decoder.VOCAB}, CorruptModel),
        ({"tokenizer.ggml.token_type": 3}, CorruptModel),
        ({"tokenizer.ggml.merges": ["a"]}, CorruptModel),
        ({"tokenizer.ggml.merges": ["a nosuch"]}, CorruptModel),
        ({"tokenizer.ggml.merges": ["q q"]}, CorruptModel),
        ({"tokenizer.ggml.eos_token_id": fake_decoder.VOCAB}, CorruptModel),
        ({"tokenizer.ggml.eos_token_id": -1}, CorruptModel),
        ({"tokenizer.ggml.bos_token_id": "x"}, CorruptModel),
        ({"tokenizer.chat_template": 1}, CorruptModel),
    ],
)
def test_lying_metadata_is_refused_in_one_line(
    changes: dict[str, Any], error: type[FlashError]
) -> None:
    with pytest.raises(error) as caught:
        files_from_gguf({**METADATA, **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b""),
        ("tokenizer.json", b"\xff" * 100),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"kind": "spm"}'),
    ],
)
def test_damaged_files_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / name).write_bytes(data)
    with pytest.raises((CorruptModel, UnsupportedModel), match=name):
        Tokenizer.from_dir(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("bos_id", 320), ("eos_id", "x"), ("eos_ids", [-1]), ("eos_ids", [True]), ("add_bos", 1)],
)
def test_a_config_with_a_wrong_value_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    write_files(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CorruptModel, match=r"tokenizer_config\.json"):
        Tokenizer.from_dir(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelIOError, match=r"tokenizer_config\.json"):
        Tokenizer.from_dir(tmp_path)
