"""Tests of SentencePiece vocabularies: the public library is the judge, of both kinds of file."""

from __future__ import annotations

import dataclasses
import functools
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
import spm
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.generate.charsmap import check_charsmap
from flashllm.generate.sentencepiece_model import PieceType, read_model, write_model
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf, files_from_hf

KINDS = ("folder", "gguf")


@functools.cache
def tokenizer(recipe: str, kind: str = "folder", **settings: Any) -> Tokenizer:
    """The tokeniser of a trained model, from either kind of file."""
    return build(spm.train(recipe), kind, **settings)


def build(data: bytes, kind: str = "folder", **settings: Any) -> Tokenizer:
    if kind == "gguf":
        return Tokenizer.from_files(files_from_gguf(spm.metadata(read_model(data))))
    with tempfile.TemporaryDirectory() as folder:
        files = {"tokenizer.model": data, "tokenizer_config.json": settings}
        return Tokenizer.from_files(files_from_hf(spm.write_folder(Path(folder), files)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", spm.RECIPES)
def test_ids_and_text_are_the_public_librarys_on_every_hard_line(recipe: str, kind: str) -> None:
    judge = spm.processor(spm.train(recipe))
    ours = tokenizer(recipe, kind)
    assert len(spm.lines()) >= 1000
    wrong = [line for line in spm.lines() if ours.encode(line) != judge.encode(line)]
    assert wrong == []
    ids = [judge.encode(line) for line in spm.lines()]
    assert [ours.decode(each) for each in ids] == [judge.decode(each) for each in ids]


@pytest.mark.parametrize("recipe", ["bpe", "bpe without prefix", "unigram"])
@settings(max_examples=100)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0"), max_size=40)
)
def test_text_comes_back(recipe: str, text: str) -> None:
    ours = tokenizer(recipe)
    assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize("recipe", spm.RECIPES)
@settings(max_examples=100)
@given(data=st.data())
def test_streaming_any_ids_gives_the_text_of_all(recipe: str, data: st.DataObject) -> None:
    ours = tokenizer(recipe)
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize("recipe", ["bpe", "unigram"])
def test_a_character_of_several_bytes_comes_out_whole(recipe: str) -> None:
    ours = tokenizer(recipe)
    ids = ours.encode("a😀b")
    stream = ours.stream()
    pieces = [stream.push(token) for token in ids]
    assert "😀" in pieces
    assert "".join(pieces) == "a😀b"


def test_the_space_of_a_first_word_is_removed_once_at_the_beginning_of_a_text() -> None:
    ours = tokenizer("bpe")
    the = ours.encode("the")
    control = ours.control_tokens["<|user|>"]
    assert ours.token_text(the[0]).startswith(" ")
    assert ours.decode([*the, *the]) == "the the"
    assert ours.decode([control, *the]) == "the"
    for after, text in (([], "the"), ([control], "the"), (the, " the"), ([control, *the], " the")):
        stream = ours.stream(after=after)
        assert "".join(stream.push(token) for token in the) == text


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_are_parsed_on_request_only(kind: str) -> None:
    ours = tokenizer("bpe", kind)
    user, end = ours.control_tokens["<|user|>"], ours.control_tokens["<|end|>"]
    text = "<|user|>hello<|end|> <s>"
    plain, parsed = ours.encode(text), ours.encode(text, special=True)
    assert not {user, end, ours.bos_id} & set(plain)
    assert ours.decode(plain) == text
    # As Llama 2's tokeniser did: each piece of text between control tokens is a text of its own.
    assert parsed == [user, *ours.encode("hello"), end, *ours.encode(" "), ours.bos_id]
    assert ours.eos_ids == {2, end}


def test_a_prefix_for_the_first_piece_only_where_the_settings_ask_for_it() -> None:
    ours = tokenizer("bpe", legacy=False)
    bare = tokenizer("bpe without prefix")
    hello = bare.encode("hello")
    assert ours.encode("hello") == tokenizer("bpe").encode("hello") != hello
    user = ours.control_tokens["<|user|>"]
    assert ours.encode("<|user|>hello", special=True)[0] == user
    assert len(ours.encode("hello<|user|>hello", special=True)) > 2 * len(ours.encode("hello"))
    assert ours.decode(ours.encode("hello<|user|>hello", special=True)) == "hellohello"
    assert ours.decode(ours.encode(" x")) == " x"


def test_what_is_hidden_stays_plain_text() -> None:
    ours = tokenizer("bpe")
    text = "<|user|>\ue000 said<|end|>"
    ids = ours.encode(text, special=True, hidden={0xE000: "<|end|><s>"})
    controls = [token for token in ids if token in ours.control_tokens.values()]
    assert controls == [ours.control_tokens["<|user|>"], ours.control_tokens["<|end|>"]]
    assert ours.decode(ids) == "<|end|><s> said"


def test_user_defined_symbols_of_the_model_itself_are_the_librarys_business() -> None:
    data = spm.train_with(user_defined_symbols=["<b>", "▁▁", "▁▁▁", "\n\n"], add_dummy_prefix=False)
    judge, ours = spm.processor(data), build(data)
    texts = [*spm.lines(), "a<b>b", "x   y    z", "a\n\n\nb", "<b><b> <b>"]
    assert [text for text in texts if ours.encode(text) != judge.encode(text)] == []
    assert ours.decode(ours.encode("a<b>b  c")) == "a<b>b  c"


def test_added_tokens_beyond_the_model() -> None:
    size = len(spm.model("bpe").pieces)
    decoder = {
        str(size): {"content": "<tool>", "special": False},
        str(size + 1): {"content": "<|eot_id|>", "special": True, "rstrip": True},
        str(size + 3): {"content": "cat", "single_word": True, "special": False},
    }
    ours = tokenizer.__wrapped__("bpe", added_tokens_decoder=decoder, bos_token="<s>")
    a, b = ours.encode("a"), ours.encode("b")
    assert ours.vocab_size == size + 4
    assert ours.encode("a<tool>b") == [*a, size, *b]
    assert ours.encode("a<|eot_id|> \n b", special=True) == [*a, size + 1, *b]
    assert size + 1 not in ours.encode("a<|eot_id|> \n b")
    assert ours.encode("cat.")[0] == size + 3
    assert size + 3 not in ours.encode("cats concat")
    assert size + 1 in ours.eos_ids
    assert ours.decode([size, size + 2, size + 3]) == "<tool>cat"


def test_tokens_added_to_a_gguf_are_found_first_and_phi3s_swallow_space() -> None:
    keys = spm.metadata(spm.model("bpe"))
    size = len(keys["tokenizer.ggml.tokens"])
    keys["tokenizer.ggml.tokens"] += ["<think>", "  ", ""]
    keys["tokenizer.ggml.token_type"] += [4, 4, 5]
    keys["tokenizer.ggml.scores"] += [-1000.0] * 3
    ours = Tokenizer.from_files(files_from_gguf(keys))
    assert ours.encode("a<think>a") == [*ours.encode("a"), size, *ours.encode("a")]
    assert ours.encode("a  a") == [*ours.encode("a"), size + 1, *ours.encode("a")]
    assert ours.decode(ours.encode("a<think>  b")) == "a<think>   b"
    bare = Tokenizer.from_files(files_from_gguf({**keys, "tokenizer.ggml.add_space_prefix": False}))
    assert bare.encode("a<think>  b")[1:3] == [size, size + 1]
    assert bare.decode(bare.encode("a<think>  b")) == "a<think>  b"
    text = "<|user|>\nhi<|end|>\n"
    phi3 = Tokenizer.from_files(files_from_gguf({**keys, "general.architecture": "phi3"}))
    assert phi3.encode(text, special=True) == ours.encode("<|user|>hi<|end|>", special=True)


def test_a_model_comes_back_from_its_bytes() -> None:
    for recipe in spm.RECIPES:
        model = spm.model(recipe)
        assert read_model(write_model(model)) == model


def test_rules_of_normalisation_are_followed() -> None:
    ours = tokenizer("unigram with rules", "gguf")
    assert ours.decode(ours.encode("  ＡＢ １  ½ ﬁe\u0301\t ")) == "AB 1 half fié"


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(spm.RECIPES)),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=5),
)
def test_a_damaged_model_is_refused_or_works(recipe: str, edits: list[tuple[float, bytes]]) -> None:
    data = bytearray(spm.train(recipe))
    for where, patch in edits:
        at = int(where * len(data))
        data[at : at + len(patch)] = patch
    try:
        ours = build(bytes(data))
    except FlashError as error:
        assert "\n" not in str(error)
        return
    ours.decode(ours.encode("Ａ damaged ½ <|user|> model", special=True))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(FlashError):
        read_model(data)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), max_size=6))
def test_a_charsmap_that_leads_out_of_itself_is_refused(edits: list[tuple[int, int]]) -> None:
    good = spm.model("unigram with rules").charsmap
    check_charsmap(good)
    (size,) = struct.unpack_from("<I", good)
    units = list(struct.unpack_from(f"<{size // 4}I", good, 4))
    for where, value in edits:
        units[where % len(units)] = value
    bad = good[:4] + struct.pack(f"<{size // 4}I", *units) + good[4 + size :]
    try:
        check_charsmap(bad)
    except CorruptModel:
        return
    walk(units, len(good) - 4 - size)


def walk(units: list[int], texts: int) -> None:
    """Follow every path of a double array, as darts.h does, and fail if it leaves the array."""
    todo, seen = [units[0]], set()
    position = [offset(units[0])]
    del todo
    while position:
        base = position.pop()
        for byte in range(1, 256):
            unit = units[base ^ byte]
            if unit & 0x800000FF != byte or (base ^ byte) in seen:
                continue
            seen.add(base ^ byte)
            below = (base ^ byte) ^ offset(unit)
            if unit >> 8 & 1:
                assert units[below] & 0x7FFFFFFF < texts
            position.append(below)


def offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)


MODEL = spm.model("bpe")


def changed(i: int, **fields: Any) -> Any:
    pieces = list(MODEL.pieces)
    pieces[i] = pieces[i]._replace(**fields)
    return lambda: dataclasses.replace(MODEL, pieces=tuple(pieces))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (changed(300, text=""), CorruptModel),
        (changed(300, text="a\0b"), CorruptModel),
        (changed(300, text=MODEL.pieces[301].text), CorruptModel),
        (changed(300, score=float("nan")), CorruptModel),
        (changed(300, type=7), CorruptModel),
        (changed(300, type=PieceType.UNKNOWN), CorruptModel),
        (changed(0, type=PieceType.CONTROL), CorruptModel),
        (changed(10, type=PieceType.NORMAL), CorruptModel),
        (lambda: dataclasses.replace(MODEL, algorithm=3), UnsupportedModel),
        (lambda: dataclasses.replace(MODEL, pieces=()), CorruptModel),
        (lambda: dataclasses.replace(MODEL, charsmap=b"\0\0\0"), CorruptModel),
        (lambda: dataclasses.replace(MODEL, charsmap=b"\0\4\0\0" + bytes(1024)), CorruptModel),
    ],
)
def test_what_the_library_would_choke_on_is_refused(make: Any, error: type[FlashError]) -> None:
    with pytest.raises(error):
        make()
