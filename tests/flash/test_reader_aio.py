"""Asynchronous reads: whatever becomes of them, units arrive as by any other way."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import plain_units
import pytest

from flashllm.errors import CorruptModel, ModelIOError
from flashllm.flash import aio
from flashllm.flash.aio import DEPTH, ReadQueue
from flashllm.flash.format import FlashModel
from flashllm.flash.reader import UnitReader
from flashllm.flash.scatter import ReadMany, ScatteredReader

UNITS, PAGE = 2500, 4096


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> FlashModel:
    """Its tests need direct reads and asynchronous I/O."""
    folder = plain_units.write(tmp_path_factory.mktemp("aio") / "model", 1, UNITS)
    model = plain_units.read(folder, 1, UNITS)
    with UnitReader(model, "direct") as reader:
        if reader.direct_file(model.group("l0")) is None:
            pytest.skip("this file system has no direct reads")
    try:
        ReadQueue().close()
    except OSError as error:
        pytest.skip(f"no asynchronous I/O: {error}")
    return model


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many reads each call of io_submit has begun."""
    real, counts = ReadQueue._submit, list[int]()

    def submit(self: ReadQueue, pointers: np.ndarray) -> int:
        counts.append(real(self, pointers))
        return counts[-1]

    monkeypatch.setattr(ReadQueue, "_submit", submit)
    return counts


@pytest.fixture
def left_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The reads that did not succeed asynchronously and were made again."""
    real, left = ScatteredReader._many, list[int]()

    def many(self: ScatteredReader, *args: Any) -> ReadMany:
        read_many = real(self, *args)

        def recording(queue: ReadQueue, first: int, stop: int) -> list[int]:
            wrong = read_many(queue, first, stop)
            left.extend(wrong)
            return wrong

        return recording

    monkeypatch.setattr(ScatteredReader, "_many", many)
    return left


def random_units(seed: int, share: float) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(seed).random(UNITS) < share)


def arrive(model: FlashModel, units: np.ndarray, gap: int) -> tuple[int, list[tuple]]:
    """Read units to pages in another order: how many reads, what failed; the rest is right."""
    memory = np.full((len(units) + 1) * PAGE, 0xEE, np.uint8)
    memory = memory[-memory.ctypes.data % PAGE :][: len(units) * PAGE]
    places = np.random.default_rng(9).permutation(len(units)) * PAGE
    group = model.group("l0")
    with UnitReader(model, "direct") as reader, ScatteredReader(reader) as scattered:
        read = scattered.start(group, units, memory.data, places, gap)
        failures = read.join()
    absent = {i for begin, end, _ in failures for i in range(begin, end)}
    raw = (model.path / group.file).read_bytes()[group.file_offset :]
    for i, (unit, place) in enumerate(zip(units.tolist(), places.tolist(), strict=True)):
        if i not in absent:
            at = int(group.offsets[unit])
            assert memory[place : place + PAGE].tobytes() == raw[at : at + PAGE]
    return read.reads, failures


@pytest.mark.parametrize("gap", [0, PAGE, 9 * PAGE])
@pytest.mark.parametrize("share", [0.001, 0.2, 1.0])
def test_units_from_all_over(
    plain: FlashModel, submitted: list[int], left_over: list[int], share: float, gap: int
) -> None:
    reads, failures = arrive(plain, random_units(1, share), gap)
    assert not failures
    assert not left_over
    assert sum(submitted) == reads


def test_more_reads_than_may_be_in_flight(plain: FlashModel, submitted: list[int]) -> None:
    reads, failures = arrive(plain, np.arange(0, UNITS, 2), 0)
    assert not failures
    assert sum(submitted) == reads == UNITS // 2 > 4 * DEPTH


def test_reads_that_fail_or_fall_short_are_made_again(
    plain: FlashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = ReadQueue._reap, list[int]()

    def reap(self: ReadQueue) -> Iterator[tuple[int, int]]:
        for i, result in real(self):
            if i % 3 == 0:
                bad.append(i)
            yield i, (-errno.EIO if i % 2 else 512) if i % 3 == 0 else result

    monkeypatch.setattr(ReadQueue, "_reap", reap)
    _, failures = arrive(plain, random_units(2, 0.3), PAGE)
    assert bad and not failures


def test_few_begun_at_a_time(plain: FlashModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = ReadQueue._submit, iter(range(1 << 30))

    def submit(self: ReadQueue, pointers: np.ndarray) -> int:
        call = next(calls)
        if call % 5 == 4:
            return -errno.EAGAIN
        return -errno.EINVAL if call % 7 == 6 else real(self, pointers[:3])

    monkeypatch.setattr(ReadQueue, "_submit", submit)
    _, failures = arrive(plain, random_units(3, 0.2), 0)
    assert not failures
    assert next(calls) > 50


@pytest.mark.parametrize("name", ["__init__", "_submit", "_reap", "_call"])
def test_a_system_that_refuses(
    plain: FlashModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the beginning, or after some reads have begun."""
    real, calls = getattr(ReadQueue, name), iter(range(1 << 30))

    def refuse(self: ReadQueue, *arguments: object) -> object:
        if name == "_call" and arguments[0] == aio._DESTROY:
            return real(self, *arguments)  # what lets go of memory is not refused
        if name == "__init__" or next(calls) % 4 == 3:
            raise OSError(errno.EPERM, "Operation not permitted")
        return real(self, *arguments)

    monkeypatch.setattr(ReadQueue, name, refuse)
    for seed in range(3):
        _, failures = arrive(plain, random_units(seed, 0.2), 0)
        assert not failures


def test_damage_is_told_where_it_is(tmp_path: Path, plain: FlashModel) -> None:
    folder = plain_units.write(tmp_path / "model", 1, UNITS)
    model = plain_units.read(folder, 1, UNITS)
    group = model.group("l0")
    with (folder / group.file).open("r+b") as file:
        file.seek(group.file_offset + int(group.offsets[100]) + 5)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    units = np.array([3, 98, 100, 101, 700, 2000])
    _, failures = arrive(model, units, PAGE)
    assert [(begin, end) for begin, end, _ in failures] == [(1, 4)]
    assert isinstance(failures[0][2], CorruptModel)
    assert "unit 100 of 'l0'" in str(failures[0][2])
    whole = (folder / group.file).read_bytes()
    with (folder / group.file).open("r+b") as file:
        file.truncate(group.file_offset + int(group.offsets[1500]))
    memory = np.zeros(len(units) * PAGE, np.uint8)
    with UnitReader(model, "direct") as reader, ScatteredReader(reader) as scattered:
        read = scattered.start(group, units, memory.data, np.arange(6) * PAGE, 0)
        failures = read.join()
        assert [begin for begin, _, _ in failures] == [2, 5]
        assert isinstance(failures[1][2], ModelIOError)
    (folder / group.file).write_bytes(whole)
