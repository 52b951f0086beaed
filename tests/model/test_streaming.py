"""Weights that do not fit: the same bits whatever stays, and errors that pass."""

from __future__ import annotations

import errno
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamed
import tiny
from streamed import LAYERS, Streamed

from flashllm.cache.policy import smallest_room
from flashllm.errors import Cancelled, CorruptModel, FlashError, ModelIOError, OutOfBudget
from flashllm.flash import layout
from flashllm.flash.reader import IO_MODES
from flashllm.llm import LLM
from flashllm.model import scan as scanning
from flashllm.model.decoder import Decoder
from flashllm.model.loader import load_decoder
from flashllm.model.memory import budget_for, kv_bytes
from flashllm.model.options import LoadOptions
from flashllm.model.scan import layer_stages

TOKENS = np.random.default_rng(7).integers(0, streamed.VOCAB, 40)
STEP = 16
N_CTX = 64
SHARES = (1.0, 0.7, 0.4, 0.15, 0.0)
"""Of what lies between the least that works and all of it."""
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tied": True, "dtype": "q4"},
    "opt": {"positions": True, "tied": True, "dtype": "f16"},
    "row": {"codec": "row", "dtype": "q8"},
}

Open = Callable[..., Decoder]


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("kinds")
    return {name: streamed.write(made / name, **options) for name, options in KINDS.items()}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, np.ndarray]:
    """Logits of every token, token by token, with all weights in memory."""
    return {name: logits(load(path), [1] * len(TOKENS)) for name, path in folders.items()}


def load(path: Path, share: float | None = None, **options: Any) -> Decoder:
    """The model with a share of its weights in memory; None: no limit."""
    if share is None:
        return load_decoder(path, LoadOptions(None, N_CTX, **options), step_tokens=STEP)
    return load_decoder(path, LoadOptions(budget(path, share), N_CTX, **options), step_tokens=STEP)


def budget(path: Path, share: float) -> int:
    """The least memory that gives the weights this share of what lies between least and all."""
    decoder = load(path)
    scan = Streamed.read(path).scan
    decoder.close()
    least = smallest_room(scan)
    kv = kv_bytes(decoder.config, N_CTX, "f16")
    room = least + int(share * (scan.nbytes - least))
    return budget_for(room, kv, decoder.scratch_bytes)


def logits(decoder: Decoder, cuts: list[int], close: bool = True) -> np.ndarray:
    """Logits of all TOKENS, read in steps of so many."""
    sequence, start, kept = decoder.new_sequence(N_CTX), 0, []
    for count in cuts:
        kept.append(decoder.step(sequence, TOKENS[start : start + count], logits="all"))
        start += count
    assert start == sequence.length == len(TOKENS)
    sequence.close()
    if close:
        decoder.close()
    return np.concatenate(kept)


@pytest.mark.parametrize(
    ("share", "io"),
    [
        *((share, "auto") for share in SHARES),
        *((share, io) for io in IO_MODES[1:] for share in (0.4, 0)),
    ],
)
@pytest.mark.parametrize("name", KINDS)
def test_bitwise_the_same_under_any_budget(
    folders: dict[str, Path], expected: dict[str, np.ndarray], name: str, share: float, io: str
) -> None:
    decoder = load(folders[name], share, io=io, threads=1 + IO_MODES.index(io) % 2)
    assert (decoder.streamed_bytes > 0) == (share < 1)
    for cuts in ([1] * 3 + [37], [40]):
        assert np.array_equal(logits(decoder, cuts, close=False), expected[name])
    decoder.close()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bitwise_the_same_with_any_threads_and_steps(
    folders: dict[str, Path], expected: dict[str, np.ndarray], threads: int
) -> None:
    for share in (0.4, 0.0):
        decoder = load(folders["llama"], share, threads=threads)
        for cuts in ([40], [17, 3, 20], [1] * 40):
            assert np.array_equal(logits(decoder, cuts, close=False), expected["llama"])
        decoder.close()


@pytest.mark.parametrize("name", KINDS)
def test_bitwise_the_same_in_pieces_and_whole(
    folders: dict[str, Path],
    expected: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    counts = []
    for size in (8 << 10, 20 << 10, 60 << 10, 1 << 30):
        monkeypatch.setattr(scanning, "FFN_PIECE", size)
        counts.append(len(layer_stages(Streamed.read(folders[name]).scan, LAYERS)[0].ffn))
        assert np.array_equal(logits(load(folders[name]), [3, 37]), expected[name])
    assert counts[0] > counts[-1] == 1


def test_a_prompt_reads_each_streamed_byte_once_for_each_step(folders: dict[str, Path]) -> None:
    decoder = load(folders["llama"], 0.3)
    sequence = decoder.new_sequence(N_CTX)
    decoder.step(sequence, TOKENS[:STEP], logits="last")
    before = decoder.traffic
    decoder.step(sequence, TOKENS[:STEP], logits="last")
    stages = decoder.streamed_bytes
    rows = 16 * 4096 * 2  # of the embedding, a unit for each token at most
    assert stages <= (decoder.traffic - before).read_bytes <= stages + rows
    decoder.close()


@pytest.mark.parametrize("name", ["llama", "row"])
def test_several_sequences_in_one_step(
    folders: dict[str, Path], expected: dict[str, np.ndarray], name: str
) -> None:
    decoder = load(folders[name], 0.1)
    first, second = decoder.new_sequence(N_CTX), decoder.new_sequence(N_CTX)
    rows = [(first, 0), (second, 0), (first, 1), (second, 1), (second, 2)]
    got = decoder.forward(
        TOKENS[[at for _, at in rows]], [sequence for sequence, _ in rows], [at for _, at in rows]
    )
    assert np.array_equal(got, expected[name][[at for _, at in rows]])
    got = decoder.forward(TOKENS[[2, 3]], [first, second], [2, 3])
    assert np.array_equal(got, expected[name][[2, 3]])
    decoder.close()


@pytest.mark.parametrize("name", KINDS)
def test_a_step_cancelled_after_any_layer(
    folders: dict[str, Path], expected: dict[str, np.ndarray], name: str
) -> None:
    decoder = load(folders[name], 0.2)
    for stop in range(1, 2 * streamed.LAYERS + 1):
        sequence = decoder.new_sequence(N_CTX)
        calls = itertools.count(1)

        def on_layer(done: int, total: int, calls: Iterator[int] = calls, stop: int = stop) -> None:
            if next(calls) == stop:
                raise Cancelled("stopped")

        with pytest.raises(Cancelled):
            decoder.step(sequence, TOKENS[: 2 * STEP], on_layer=on_layer)
        kept = sequence.length
        assert kept in (0, STEP)
        got = decoder.step(sequence, TOKENS[kept:], logits="all")
        assert np.array_equal(got, expected[name][kept:])
        sequence.close()
    decoder.close()


def test_the_budget_may_change_between_any_two_layers(
    folders: dict[str, Path], expected: dict[str, np.ndarray]
) -> None:
    shares = itertools.cycle(SHARES)
    for name in KINDS:
        budgets = {share: budget(folders[name], share) for share in SHARES}
        decoder = load(folders[name], 0.4)
        kv = kv_bytes(decoder.config, N_CTX, "f16")

        def on_layer(
            done: int,
            total: int,
            decoder: Decoder = decoder,
            budgets: dict[float, int] = budgets,
            kv: int = kv,
        ) -> None:
            decoder.fit(budgets[next(shares)], kv=kv)

        sequence = decoder.new_sequence(N_CTX)
        got = [
            decoder.step(sequence, TOKENS[low : low + 8], logits="all", on_layer=on_layer)
            for low in range(0, 40, 8)
        ]
        assert np.array_equal(np.concatenate(got), expected[name])
        decoder.close()


def test_a_budget_too_small_even_to_stream_is_refused_with_what_would_do(
    folders: dict[str, Path], expected: dict[str, np.ndarray]
) -> None:
    least = budget(folders["llama"], 0)
    with pytest.raises(OutOfBudget, match="at least"):
        load_decoder(folders["llama"], LoadOptions(least - 1, N_CTX), step_tokens=STEP)
    decoder = load(folders["llama"], 0.5)
    kv, had = kv_bytes(decoder.config, N_CTX, "f16"), decoder.resident_bytes
    with pytest.raises(OutOfBudget, match="at least"):
        decoder.fit(least - 1, kv=kv)
    assert (decoder.budget, decoder.resident_bytes) == (budget(folders["llama"], 0.5), had)
    decoder.fit(least, kv=kv)
    assert np.array_equal(logits(decoder, [40]), expected["llama"])


class Disk:
    """Reads of files fail, or flip a bit, from the `after`th on, until it is repaired."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.after: int | None = None
        self.how = "fail"
        self._real = os.preadv
        patch.setattr(os, "preadv", self._read)

    def _read(self, fd: int, views: Any, offset: int, *flags: int) -> int:
        got = self._real(fd, views, offset, *flags)
        if self.after is None:
            return got
        self.after -= 1
        if self.after >= 0:
            return got
        if self.how == "fail":
            raise OSError(errno.EIO, "Input/output error")
        views[0][0] ^= 1
        return got


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with words, of many units."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "UNIT_TARGET", 8 << 10)
        return tiny.model_dir(
            tmp_path_factory.mktemp("chatty"), layers=4, ffn=256, vocab=1024, context=256
        )


@pytest.mark.skipif(sys.platform == "win32", reason="reads by seek and readinto")
@pytest.mark.parametrize("after", [0, 1, 7, 25, 60])
@pytest.mark.parametrize(("how", "error"), [("fail", ModelIOError), ("flip", CorruptModel)])
def test_a_disk_that_fails_in_a_reply(
    chatty: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    error: type[FlashError],
    after: int,
) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
    with LLM.open(chatty, mem_budget=None) as llm:
        whole = llm.session().ask("hello there", **options)
        later = llm.session().ask("another", **options)
    scan = Streamed.read(chatty).scan
    disk = Disk(monkeypatch)
    limit = budget_of(chatty, smallest_room(scan))
    with LLM.open(chatty, mem_budget=limit, n_ctx=256) as llm:
        chat = llm.session(**options)
        assert chat.ask("hello there") == whole
        chat.reset()
        disk.after, disk.how = after, how
        reply = chat.stream("hello there")
        with pytest.raises(error, match="units-"):
            reply.result()
        assert whole.startswith(reply.text)
        assert chat.messages == ()
        with pytest.raises(error):
            chat.ask("hello there")
        disk.after = None
        assert chat.ask("hello there") == whole
        chat.reset()
        assert chat.ask("another") == later


def budget_of(folder: Path, room: int) -> int:
    """What a model takes with so much of its weights, opened as LLM.open does."""
    decoder = load_decoder(folder, LoadOptions(None, 256))
    decoder.close()
    return budget_for(room, kv_bytes(decoder.config, 256, "f16"), decoder.scratch_bytes)
