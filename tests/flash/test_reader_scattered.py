"""Scattered units by one read: each is the file's, what lies between is nobody's."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import plain_units
import pytest

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError
from flashllm.flash import files
from flashllm.flash.files import Scratch, open_file
from flashllm.flash.format import FlashModel
from flashllm.flash.reader import UnitReader

MODES = ["auto", "direct", "pread", "mmap"]
POSITIONED = pytest.mark.skipif(sys.platform == "win32", reason="reads there are not os.preadv")
UNITS = 40
PAGE = 4096


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never written to again."""
    return plain_units.write(tmp_path_factory.mktemp("plain") / "model", 2, UNITS)


@pytest.fixture
def plain(written: Path) -> FlashModel:
    return plain_units.read(written, 2, UNITS)


def pages(count: int, shift: int = 0) -> memoryview:
    """`count` pages of 0xEE that begin on a page, or `shift` bytes behind one."""
    memory = np.full((count + 1) * PAGE + shift, 0xEE, np.uint8)
    start = -memory.ctypes.data % PAGE + shift
    return memory[start : start + count * PAGE].data


def slots(units: list[int], shift: int = 0) -> list[memoryview]:
    """A page for each unit, each with a page behind it that nobody may write to."""
    memory = pages(2 * len(units), shift)
    return [memory[2 * i * PAGE : (2 * i + 1) * PAGE] for i in range(len(units))]


def check(model: FlashModel, name: str, units: list[int], out: list[memoryview]) -> None:
    group = model.group(name)
    for unit, view in zip(units, out, strict=True):
        length = int(group.lengths[unit])
        assert view[:length] == plain_units.unit_bytes(model, group, unit), f"unit {unit}"
        whole = np.asarray(view.obj)
        begin = np.asarray(view).ctypes.data - whole.ctypes.data
        assert (whole[begin + PAGE : begin + 2 * PAGE] == 0xEE).all()


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("io", MODES)
def test_any_units_in_every_mode(plain: FlashModel, io: str, shift: int) -> None:
    rng = np.random.default_rng(1)
    with UnitReader(plain, io) as reader:
        for name, group in plain.groups.items():
            for count in (1, 2, 7, UNITS):
                units = np.sort(rng.choice(UNITS, count, replace=False)).tolist()
                out = slots(units, shift)
                reader.read_scattered(group, units, out)
                check(plain, name, units, out)
            reader.read_scattered(group, [], [])


@pytest.mark.parametrize("positioned", [True, False])
def test_where_the_system_cannot_scatter(plain: FlashModel, positioned: bool) -> None:
    group = plain.group("l1")
    file = open_file(
        plain.path / group.file, "pread", Scratch(), direct=False, positioned=positioned
    )
    units = [0, 1, 5, 39]
    out = slots(units)
    file.read_into_many([group.file_offset + int(group.offsets[unit]) for unit in units], out)
    check(plain, "l1", units, out)
    file.close()


def test_a_hole_larger_than_the_buffer_for_it(tmp_path: Path) -> None:
    raw = np.random.default_rng(2).bytes(3 << 20)
    (tmp_path / "file").write_bytes(raw)
    for io in ("direct", "pread"):
        file = open_file(tmp_path / "file", io, Scratch())
        first, second = slots([0, 1])
        far = (2 << 20) + 5 * PAGE
        file.read_into_many([PAGE, far], [first, second])
        assert (first, second) == (raw[PAGE : 2 * PAGE], raw[far : far + PAGE])
        file.close()


@POSITIONED
def test_more_pieces_than_one_read_may_fill(tmp_path: Path) -> None:
    raw = np.random.default_rng(3).bytes(3001 * PAGE)
    (tmp_path / "file").write_bytes(raw)
    memory = pages(3001)
    for step in (1, 2):  # without holes, and with one behind every piece
        offsets = [i * PAGE for i in range(0, 3001, step)]
        out = [memory[offset : offset + PAGE] for offset in offsets]
        for io in ("direct", "pread"):
            memory[:] = bytes(len(memory))
            file = open_file(tmp_path / "file", io, Scratch())
            file.read_into_many(offsets, out)
            for offset, view in zip(offsets, out, strict=True):
                assert view == raw[offset : offset + PAGE]
            file.close()


@POSITIONED
@pytest.mark.parametrize("io", ["direct", "pread"])
def test_near_units_are_one_read(
    plain: FlashModel, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, calls, real = plain.group("l0"), list[tuple[int, int]](), os.preadv

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        calls.append((offset, sum(len(view) for view in views)))
        return real(fd, views, offset, flags)

    with UnitReader(plain, io) as reader:
        reader.read_scattered(group, [0], slots([0]))
        monkeypatch.setattr(os, "preadv", preadv)
        reader.read_scattered(group, [3, 4, 9], slots([3, 4, 9]))
    assert calls == [(group.file_offset + int(group.offsets[3]), 7 * PAGE)]


def first_bytes(views: list[memoryview], nbytes: int) -> list[memoryview]:
    """The first `nbytes` bytes of `views`."""
    cut = list[memoryview]()
    for view in views:
        cut.append(view[:nbytes])
        nbytes -= len(cut[-1])
    return [view for view in cut if len(view)]


@POSITIONED
@pytest.mark.parametrize(("io", "cached"), [("auto", True), ("direct", False), ("pread", False)])
def test_short_reads_and_errors_that_pass(
    plain: FlashModel, io: str, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads end anywhere, direct ones in any sector; every fifth fails; some are not cached."""
    monkeypatch.setattr(files, "is_cached", lambda path: cached)
    rng, real, calls = np.random.default_rng(4), os.preadv, iter(range(1 << 30))
    sector = 1 if io == "pread" else 512

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if next(calls) % 5 == 0:
            raise OSError(errno.EIO, "Input/output error")
        if flags and rng.random() < 0.2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        most = sum(len(view) for view in views)
        enough = max(sector, int(most * rng.random()) // sector * sector)
        return real(fd, first_bytes(views, enough), offset, flags)

    with UnitReader(plain, io) as reader:
        monkeypatch.setattr(os, "preadv", preadv)
        for name, group in plain.groups.items():
            for _ in range(20):
                units = np.sort(rng.choice(UNITS, 6, replace=False)).tolist()
                out = slots(units)
                reader.read_scattered(group, units, out)
                check(plain, name, units, out)
    assert next(calls) > 300


@POSITIONED
@pytest.mark.parametrize("io", ["auto", "direct", "pread"])
def test_an_error_that_stays(plain: FlashModel, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = plain.group("l0")
    with UnitReader(plain, io) as reader:
        reader.read_scattered(group, [0], slots([0]))

        def broken(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            with pytest.raises(ModelIOError, match="Input/output error") as caught:
                reader.read_scattered(group, [2, 4], slots([2, 4]))
        assert caught.value.path == plain.path / group.file
        assert caught.value.offset == group.file_offset + int(group.offsets[2])
        reader.read_scattered(group, [2, 4], slots([2, 4]))


@pytest.fixture
def damaged(tmp_path: Path) -> FlashModel:
    """One that the test may damage."""
    return plain_units.read(plain_units.write(tmp_path / "model", 2, UNITS), 2, UNITS)


@pytest.mark.parametrize("io", MODES)
def test_a_file_that_shrinks(damaged: FlashModel, io: str) -> None:
    if sys.platform == "win32" and io == "mmap":
        pytest.skip("a mapped file cannot be truncated here")
    group = damaged.group("l1")
    with UnitReader(damaged, io) as reader:
        reader.read_scattered(group, [0, 9], slots([0, 9]))
        end = group.file_offset + int(group.offsets[9]) + 100
        with (damaged.path / group.file).open("r+b") as file:
            file.truncate(end)
        reader.read_scattered(group, [0, 8], slots([0, 8]))
        with pytest.raises(ModelIOError, match="changed while in use") as caught:
            reader.read_scattered(group, [0, 9], slots([0, 9]))
        assert caught.value.offset == end


@pytest.mark.parametrize("io", MODES)
def test_a_flipped_bit_counts_where_it_is_wanted(damaged: FlashModel, io: str) -> None:
    group = damaged.group("l0")
    with (damaged.path / group.file).open("r+b", buffering=0) as file:
        file.seek(group.file_offset + int(group.offsets[5]) + plain_units.LENGTH - 1)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with UnitReader(damaged, io) as reader:
        with pytest.raises(CorruptModel, match="unit 5 of 'l0'"):
            reader.read_scattered(group, [3, 5, 6], slots([3, 5, 6]))
        out = slots([3, 6])  # what lies between is not looked at
        reader.read_scattered(group, [3, 6], out)
        check(damaged, "l0", [3, 6], out)


@pytest.mark.parametrize(
    "units", [[-1], [UNITS], [3, 3], [4, 3], [0, -1, 5], [0, 1 << 70, 5], [1, 99, 3]]
)
def test_units_out_of_range_or_order(plain: FlashModel, units: list[int]) -> None:
    with UnitReader(plain) as reader, pytest.raises(InvalidInput, match="'l0' has units 0 to 39"):
        reader.read_scattered(plain.group("l0"), units, slots(units))


def test_buffers_that_do_not_fit(plain: FlashModel) -> None:
    group = plain.group("l0")
    with UnitReader(plain) as reader:
        for bad in (
            pages(1)[:-1],
            pages(2),
            memoryview(bytes(PAGE)),
            pages(1).cast("H"),
            pages(4).cast("I"),
        ):
            with pytest.raises(InvalidInput, match="4096 writable bytes"):
                reader.read_scattered(group, [2], [bad])
        with pytest.raises(InvalidInput, match="buffers"):
            reader.read_scattered(group, [1], [])
