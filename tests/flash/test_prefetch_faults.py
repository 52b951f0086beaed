"""Reads ahead of damaged units and bad disks: each read ends in its bytes or in its own error."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
from damage import UNITS
from runs import POSITIONED, expected, run_of, start_all

from flashllm.errors import Cancelled, CorruptModel, InvalidInput, ModelIOError
from flashllm.flash.format import FlashModel
from flashllm.flash.prefetch import Pending, Prefetcher
from flashllm.flash.reader import UnitReader


def test_an_error_stays_with_its_read(opened: FlashModel, reader: UnitReader) -> None:
    group = opened.group("layers.0.ffn")
    with (opened.path / UNITS).open("r+b") as file:
        file.seek(group.file_offset + int(group.offsets[2]))
        file.write(b"flip")
    with Prefetcher(reader, 2) as ahead:
        outside = ahead.start(group, group.units, 1, run_of(group, 0))
        for unit, (pending, out) in enumerate(start_all(ahead, group)):
            if unit != 2:
                pending.wait()
                assert out.tobytes() == expected(opened, group, unit)
                continue
            for _ in range(2):
                with pytest.raises(CorruptModel, match=r"unit 2 of 'layers\.0\.ffn'"):
                    pending.wait()
        with pytest.raises(InvalidInput):
            outside.wait()


@POSITIONED
def test_a_disk_that_fails_and_recovers(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = opened.group("layers.0.ffn")
    real, bad = os.preadv, group.file_offset + int(group.offsets[1])

    def failing(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, views, offset, flags)

    with Prefetcher(reader, 4) as ahead:
        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", failing)
            started = start_all(ahead, group)
            for unit, (pending, _) in enumerate(started):
                if unit != 1:
                    pending.wait()
            with pytest.raises(ModelIOError) as caught:
                started[1][0].wait()
        assert (caught.value.path, caught.value.offset) == (opened.path / UNITS, bad)
        ahead.start(group, 1, 1, started[1][1]).wait()
        assert started[1][1].tobytes() == expected(opened, group, 1)


@POSITIONED
def test_many_threads_and_everything_at_once(
    opened: FlashModel, reader: UnitReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starts, waits and cancels from 8 threads, over units that are damaged and a bad disk."""
    group = opened.group("layers.1.ffn")
    damaged = 1
    with (opened.path / UNITS).open("r+b") as file:
        file.seek(group.file_offset + int(group.offsets[damaged]))
        file.write(b"flip")
    whole = [expected(opened, group, unit) for unit in range(group.units)]
    real, calls = os.preadv, iter(range(1 << 30))

    def flaky(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        call = next(calls)
        if call % 5 == 0:
            raise OSError(errno.EIO, "Input/output error")
        if call % 5 == 1 and len(views[0]) > 1:
            return real(fd, [views[0][: len(views[0]) // 2]], offset, flags)
        return real(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", flaky)
    outcomes: list[str] = []
    failures: list[BaseException] = []

    def work(seed: int, ahead: Prefetcher) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                units = rng.integers(group.units, size=4).tolist()
                outs = [run_of(group, unit) for unit in units]
                started = [ahead.start(group, u, 1, o) for u, o in zip(units, outs, strict=True)]
                for pending in started:
                    if rng.random() < 0.3:
                        pending.cancel()
                for unit, pending, out in zip(units, started, outs, strict=True):
                    outcomes.append(outcome(pending, out, unit))
        except BaseException as error:
            failures.append(error)

    def outcome(pending: Pending, out: np.ndarray, unit: int) -> str:
        try:
            pending.wait()
        except Cancelled:
            assert (out == 0xEE).all()
            return "dropped"
        except CorruptModel:
            assert unit == damaged
            return "corrupt"
        except ModelIOError:  # three failures of one read, which chance may bring together
            return "failed"
        assert unit != damaged
        assert out.tobytes() == whole[unit]
        return "read"

    with Prefetcher(reader, 8) as ahead:
        threads = [threading.Thread(target=work, args=(seed, ahead)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert len(outcomes) == 8 * 40 * 4
    assert outcomes.count("read") > outcomes.count("failed")
    assert {"read", "corrupt", "dropped"} <= set(outcomes)
