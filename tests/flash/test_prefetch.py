"""Reads ahead: in order, so many at once, dropped or waited for."""

from __future__ import annotations

import _thread
import gc
import threading
import weakref
from pathlib import Path

import pytest
from runs import POSITIONED, WAIT_S, Gate, expected, run_of, start_all

from flashllm.errors import Cancelled, EngineError, InvalidInput
from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.prefetch import Prefetcher
from flashllm.flash.reader import UnitReader


@pytest.mark.parametrize("io", ["auto", "direct", "pread", "mmap"])
def test_runs_are_the_bytes_of_the_file(pristine: Path, io: str) -> None:
    model = read_model(pristine)
    with UnitReader(model, io) as reader, Prefetcher(reader, 3) as ahead:
        for group in model.groups.values():
            started = []
            for first in range(0, group.units, 2):
                count = min(2, group.units - first)
                out = run_of(group, first, count)
                started.append((ahead.start(group, first, count, out), first, count, out))
            for pending, first, count, out in started:
                pending.wait()
                assert pending.done
                assert out.tobytes() == expected(model, group, first, count)


@POSITIONED
def test_reads_begin_in_order(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("layers.0.ffn")
    gate = Gate(monkeypatch)
    with Prefetcher(reader, 1) as ahead:
        started = start_all(ahead, group)
        gate.open()
        for pending, _ in started:
            pending.wait()
    assert gate.offsets == (group.file_offset + group.offsets[:-1]).tolist()


@POSITIONED
def test_as_many_reads_at_once_as_threads(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with Prefetcher(reader, 3) as ahead:
        started = start_all(ahead, opened.group("layers.0.ffn"))
        assert len(started) > 3
        gate.await_reads(3)
        assert len(gate.offsets) == 3
        assert not any(pending.done for pending, _ in started)
        gate.open()
        for pending, _ in started:
            pending.wait()


@POSITIONED
def test_cancelling_in_every_state(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("layers.0.ffn")
    gate = Gate(monkeypatch)
    with Prefetcher(reader, 1) as ahead:
        (running, out), (queued, untouched), (last, _) = start_all(ahead, group)[:3]
        gate.await_reads(1)
        queued.cancel()
        assert queued.done
        canceller = threading.Thread(target=running.cancel)
        canceller.start()
        canceller.join(0.05)
        assert canceller.is_alive()  # it may not return while bytes can still arrive
        gate.open()
        canceller.join(WAIT_S)
        assert running.done
        running.wait()
        assert out.tobytes() == expected(opened, group, 0)
        last.wait()
        for pending in (running, queued, last):
            pending.cancel()
            pending.cancel()
        last.wait()
        for _ in range(2):
            with pytest.raises(Cancelled):
                queued.wait()
    assert (untouched == 0xEE).all()


@POSITIONED
def test_closing_drops_what_is_queued(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("layers.0.ffn")
    gate = Gate(monkeypatch)
    ahead = Prefetcher(reader, 2)
    started = start_all(ahead, group)
    gate.await_reads(2)
    closers = [threading.Thread(target=ahead.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    for pending, out in started[2:]:
        with pytest.raises(Cancelled):
            pending.wait()
        assert (out == 0xEE).all()
    assert all(closer.is_alive() for closer in closers)
    with pytest.raises(EngineError):
        ahead.start(group, 0, 1, run_of(group, 0))
    gate.open()
    for closer in closers:
        closer.join(WAIT_S)
    for unit, (pending, out) in enumerate(started[:2]):
        pending.wait()
        assert out.tobytes() == expected(opened, group, unit)
    ahead.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("flash-ahead")]
    assert len(gate.offsets) == 2


@POSITIONED
def test_waiting_can_be_interrupted(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("embed")
    gate = Gate(monkeypatch)
    with Prefetcher(reader, 1) as ahead:
        pending = ahead.start(group, 0, 1, run_of(group, 0))
        gate.await_reads(1)
        with pytest.raises(KeyboardInterrupt):  # noted, but no signal wakes the thread up
            threading.Timer(0.05, _thread.interrupt_main).start()
            pending.wait()
        gate.open()
        pending.wait()


@POSITIONED
def test_a_read_that_is_over_keeps_no_memory(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("layers.0.ffn")
    gate = Gate(monkeypatch)
    gc.disable()
    try:
        with Prefetcher(reader, 1) as ahead:
            started = [(pending, weakref.ref(out)) for pending, out in start_all(ahead, group)]
            started[1][0].cancel()
            assert started[1][1]() is None
            gate.open()
            started[-1][0].wait()
            assert [out() for _, out in started[:-1]] == [None] * (len(started) - 1)
        assert started[-1][1]() is None
    finally:
        gc.enable()


def test_no_threads(reader: UnitReader) -> None:
    with pytest.raises(InvalidInput, match="threads"):
        Prefetcher(reader, 0)
