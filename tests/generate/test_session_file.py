"""Tests of session files: a round trip, the public library, and files that lie."""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_decoder
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from fake_decoder import FakeDecoder

from flashllm.errors import CorruptModel, DiskFull, FlashError, InvalidInput, ModelIOError
from flashllm.generate import session_file
from flashllm.generate.events import Done
from flashllm.generate.sampling import SamplingParams
from flashllm.generate.session import Call, ChatModel, SessionState
from flashllm.generate.template import Message


def say(state: SessionState, text: str) -> Done:
    params = SamplingParams(seed=1, max_tokens=10)
    *_, done = state.ask(text, Call(params, lambda: None, lambda event: None, time.perf_counter()))
    assert isinstance(done, Done)
    return done


def talked(model: ChatModel | None = None) -> SessionState:
    state = SessionState(model or fake_decoder.chat_model(), 256, [Message("system", "sé\ud83d")])
    say(state, "hello")
    return state


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "talk.safetensors"
    session_file.save(talked(), path)
    return path


def test_a_round_trip_goes_on_where_it_was(saved: Path) -> None:
    original = talked()
    loaded = session_file.load(saved, fake_decoder.chat_model())
    assert loaded.messages == original.messages
    assert (loaded.tokens, loaded.n_ctx) == (original.tokens, 256)
    assert dataclass_without_time(say(loaded, "next")) == dataclass_without_time(
        say(original, "next")
    )
    assert loaded.messages == original.messages


def dataclass_without_time(done: Done) -> tuple[Any, ...]:
    stats = done.stats
    return (done.reason, stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens)


def test_a_session_that_never_spoke_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    session_file.save(SessionState(fake_decoder.chat_model(), 64), path)
    assert session_file.load(path, fake_decoder.chat_model()).messages == ()


def test_the_public_library_opens_it(saved: Path) -> None:
    with safetensors.safe_open(saved, framework="np") as file:
        assert file.metadata()["format"] == "flashllm-session"
        assert file.get_tensor("tokens").tolist() == talked().tokens


def test_another_model_reads_the_text_anew(saved: Path) -> None:
    other = fake_decoder.chat_model()
    other = ChatModel(other.decoder, other.tokenizer, other.prompts, identity="another")
    loaded = session_file.load(saved, other)
    assert loaded.messages == talked().messages
    assert loaded.tokens == []
    assert say(loaded, "next").stats.cached_tokens == 0


def test_a_cache_of_another_dtype_is_refused(saved: Path) -> None:
    decoder = FakeDecoder()
    decoder.kv_dtype = "f32"
    with pytest.raises(InvalidInput, match=r"'f16'.*'f32'.*--kv-dtype"):
        session_file.load(saved, fake_decoder.chat_model(decoder))
    assert decoder.sequences == []


def test_a_smaller_context_reads_the_text_anew(saved: Path) -> None:
    loaded = session_file.load(saved, fake_decoder.chat_model(), n_ctx=20)
    assert (loaded.n_ctx, loaded.tokens) == (20, [])


def test_saving_replaces_the_file_whole(saved: Path) -> None:
    state = talked()
    say(state, "more")
    session_file.save(state, saved)
    assert session_file.load(saved, fake_decoder.chat_model()).messages == state.messages
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, ModelIOError)])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    code: int, error: type[FlashError], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error, match=r"talk\.safetensors"):
        session_file.save(talked(), saved)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelIOError, match="nowhere"):
        session_file.save(talked(), tmp_path / "nowhere" / "talk.safetensors")
    with pytest.raises(ModelIOError, match="nothing"):
        session_file.load(tmp_path / "nothing", fake_decoder.chat_model())


def test_every_flipped_byte_is_noticed(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), size=min(len(data), 300), replace=False):
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        if json_is_the_same(data, bytes(flipped)):
            continue
        saved.write_bytes(flipped)
        with pytest.raises(CorruptModel):
            session_file.load(saved, fake_decoder.chat_model())


def json_is_the_same(a: bytes, b: bytes) -> bool:
    """Whether two files have the same data and headers that mean the same (padding, escapes)."""
    try:
        headers = [json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]]) for data in (a, b)]
    except ValueError:
        return False
    return headers[0] == headers[1] and a[-100:] == b[-100:] and len(a) == len(b)


def test_every_truncation_is_noticed(saved: Path) -> None:
    data = saved.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1]:
        saved.write_bytes(data[:length])
        with pytest.raises(CorruptModel):
            session_file.load(saved, fake_decoder.chat_model())


def rewrite(path: Path, change: Callable[[dict[str, str], dict[str, Any]], None]) -> None:
    """The file with metadata and arrays changed, and a checksum that fits the lie."""
    with safetensors.safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
    arrays = safetensors.numpy.load(path.read_bytes())
    change(metadata, arrays)
    metadata["xxh3"] = session_file._checksum(metadata, arrays)
    safetensors.numpy.save_file(arrays, path, metadata)


LIES: dict[str, Callable[[dict[str, str], dict[str, Any]], Any]] = {
    "another format": lambda m, a: m.update(format="x"),
    "another version": lambda m, a: m.update(version="99"),
    "no messages": lambda m, a: m.pop("messages"),
    "messages that are not JSON": lambda m, a: m.update(messages="["),
    "messages nested deeply": lambda m, a: m.update(messages="[" * 100_000),
    "messages that are a number": lambda m, a: m.update(messages="1"),
    "a message that is a number": lambda m, a: m.update(messages="[1]"),
    "a message without content": lambda m, a: m.update(messages='[{"role": "user"}]'),
    "an unknown role": lambda m, a: m.update(messages='[{"role": "root", "content": ""}]'),
    "content that is no text": lambda m, a: m.update(messages='[{"role": "user", "content": 1}]'),
    "too many messages": lambda m, a: m.update(messages=json.dumps([1] * 70_000)),
    "a huge context": lambda m, a: m.update(n_ctx="9" * 30),
    "a negative context": lambda m, a: m.update(n_ctx="-1"),
    "a context beyond the model's": lambda m, a: m.update(n_ctx="513"),
    "no tokens": lambda m, a: a.pop("tokens"),
    "tokens out of range": lambda m, a: a.update(tokens=a["tokens"] + 1000),
    "negative tokens": lambda m, a: a.update(tokens=a["tokens"] - 1000),
    "tokens of another type": lambda m, a: a.update(tokens=a["tokens"].astype(np.int64)),
    "tokens of another shape": lambda m, a: a.update(tokens=a["tokens"][None]),
    "fewer tokens than the cache": lambda m, a: a.update(tokens=a["tokens"][1:]),
    "a cache of another type": lambda m, a: a.update({"kv.keys": a["kv.keys"].astype(np.float32)}),
    "a cache of another shape": lambda m, a: a.update({"kv.keys": a["kv.keys"][None]}),
    "a cache of more layers than there can be": lambda m, a: a.update(
        {"kv.keys": np.zeros((1025, 0), np.float16)}
    ),
    "an unsupported type": lambda m, a: a.update({"kv.keys": a["kv.keys"].astype(np.int16)}),
    "no cache": lambda m, a: a.pop("kv.keys"),
    "more than there should be": lambda m, a: a.update({"kv.more": a["kv.keys"]}),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_in_one_line(lie: str, saved: Path) -> None:
    rewrite(saved, LIES[lie])
    decoder = FakeDecoder()
    with pytest.raises(CorruptModel) as caught:
        session_file.load(saved, fake_decoder.chat_model(decoder))
    assert "\n" not in str(caught.value)
    assert all(sequence.closed for sequence in decoder.sequences)


def test_a_file_too_large_for_any_session_is_not_even_read(saved: Path) -> None:
    with saved.open("r+b") as file:
        file.truncate(1 << 36)  # sparse
    with pytest.raises(CorruptModel, match="more than a session"):
        session_file.load(saved, fake_decoder.chat_model())
