"""Runs of units by one read: the file's bytes, all verified, or an error that says where."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import UNITS

from flashllm.errors import CorruptModel, EngineError, InvalidInput, ModelIOError
from flashllm.flash.format import Group, read_model
from flashllm.flash.reader import UnitReader

MODES = ["auto", "direct", "pread", "mmap"]
POSITIONED = pytest.mark.skipif(sys.platform == "win32", reason="reads there are not os.preadv")
Preadv = Callable[[int, list[memoryview], int, int], int]


def aligned(size: int) -> np.ndarray:
    """`size` bytes of memory that begins on a page."""
    memory = np.full(size + 4096, 0xEE, np.uint8)
    return memory[-memory.ctypes.data % 4096 :][:size]


def nbytes(group: Group, first: int, count: int) -> int:
    return int(group.offsets[first + count] - group.offsets[first])


def patch_preadv(
    monkeypatch: pytest.MonkeyPatch, behaviour: Callable[[Preadv], Preadv]
) -> list[int]:
    """Put behaviour(the real os.preadv) in its place; returns what lengths are then read."""
    replaced, lengths = behaviour(os.preadv), list[int]()

    def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        lengths.append(len(views[0]))
        return replaced(fd, views, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    return lengths


@pytest.mark.parametrize("io", MODES)
def test_every_run_of_every_group(pristine: Path, io: str) -> None:
    model = read_model(pristine)
    with UnitReader(model, io) as reader:
        for group in model.groups.values():
            raw = (pristine / group.file).read_bytes()[group.file_offset :]
            for first in range(group.units):
                for count in range(1, group.units - first + 1):
                    begin, size = int(group.offsets[first]), nbytes(group, first, count)
                    roomy = aligned(size + 4096)
                    for out in (roomy, roomy[1 : size + 1]):
                        out[:] = 0xEE
                        reader.read_run(group, first, count, out)
                        assert out[:size].tobytes() == raw[begin : begin + size]
                    assert (roomy[size + 1 :] == 0xEE).all()


@POSITIONED
@pytest.mark.parametrize("io", ["direct", "pread"])
def test_a_run_is_one_read(pristine: Path, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(pristine)
    group = model.group("layers.0.ffn")
    with UnitReader(model, io) as reader:
        reader.read([(UNITS, 0, 1)], [np.zeros(1, np.uint8)])
        lengths = patch_preadv(monkeypatch, lambda real: real)
        size = nbytes(group, 0, group.units)
        reader.read_run(group, 0, group.units, aligned(size))
        assert lengths == [size]


@pytest.mark.parametrize("io", MODES)
def test_a_flipped_bit_in_any_unit_is_found(model: Path, io: str) -> None:
    opened = read_model(model)
    rng = np.random.default_rng(6)
    with (model / UNITS).open("r+b", buffering=0) as file, UnitReader(opened, io) as reader:
        for name, group in opened.groups.items():
            out = aligned(nbytes(group, 0, group.units))
            for unit in range(group.units):
                edge = int(rng.choice([0, int(group.lengths[unit]) - 1]))
                for at in (edge, int(rng.integers(group.lengths[unit]))):
                    place = group.file_offset + int(group.offsets[unit]) + at
                    good = os.pread(file.fileno(), 1, place)[0]
                    os.pwrite(file.fileno(), bytes([good ^ 1 << int(rng.integers(8))]), place)
                    with pytest.raises(CorruptModel) as caught:
                        reader.read_run(group, 0, group.units, out)
                    assert f"{model / UNITS}: unit {unit} of {name!r}" in str(caught.value)
                    os.pwrite(file.fileno(), bytes([good]), place)
            reader.read_run(group, 0, group.units, out)


@pytest.mark.parametrize(
    ("first", "count"), [(-1, 1), (0, 0), (0, -1), (1, 8), (8, 1), (1 << 70, 1)]
)
def test_units_out_of_range(pristine: Path, first: int, count: int) -> None:
    model = read_model(pristine)
    group = model.group("layers.0.ffn")
    assert group.units == 8
    out = aligned(nbytes(group, 0, 8))
    with UnitReader(model) as reader, pytest.raises(InvalidInput, match=r"'layers\.0\.ffn' has 8"):
        reader.read_run(group, first, count, out)
    assert (out == 0xEE).all()


def test_buffers_that_do_not_fit(pristine: Path) -> None:
    model = read_model(pristine)
    group = model.group("layers.0.ffn")
    good = aligned(nbytes(group, 1, 2))
    read_only = good.copy()
    read_only.flags.writeable = False
    with UnitReader(model) as reader:
        reader.read_run(group, 1, 2, good)
        for bad in (good[:-1], good.view(np.int8), good.repeat(2)[::2], read_only):
            with pytest.raises(InvalidInput, match="buffer"):
                reader.read_run(group, 1, 2, bad)


@POSITIONED
@pytest.mark.parametrize("io", ["auto", "direct", "pread"])
def test_short_reads_and_errors_that_pass(
    pristine: Path, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = read_model(pristine)
    group = model.group("layers.1.ffn")
    size, out = nbytes(group, 0, group.units), aligned(nbytes(group, 0, group.units))
    calls = iter(range(1 << 30))

    def unreliable(real: Preadv) -> Preadv:
        def preadv(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
            call = next(calls)
            if call % 3 == 0:
                raise OSError(errno.EIO, "Input/output error")
            short = max(4096, len(views[0]) // 2 // 4096 * 4096)
            return real(fd, [views[0][:short]], offset, flags)

        return preadv

    lengths = patch_preadv(monkeypatch, unreliable)
    with UnitReader(model, io) as reader:
        reader.read_run(group, 0, group.units, out)
    raw = (pristine / group.file).read_bytes()[group.file_offset :]
    assert out.tobytes() == raw[:size]
    assert len(lengths) > 4


@POSITIONED
@pytest.mark.parametrize("io", ["auto", "direct", "pread"])
def test_errors_that_stay(pristine: Path, io: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(pristine)
    group = model.group("layers.1.ffn")
    out = aligned(nbytes(group, 2, 2))

    def broken(real: Preadv) -> Preadv:
        def preadv(fd: int, views: list[memoryview], offset: int, flags: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

        return preadv

    with UnitReader(model, io) as reader:
        for _ in range(2):  # the disk fails before the file is open, and after
            with monkeypatch.context() as patch:
                lengths = patch_preadv(patch, broken)
                with pytest.raises(ModelIOError, match="Input/output error") as caught:
                    reader.read_run(group, 2, 2, out)
            assert caught.value.path == pristine / UNITS
            assert caught.value.offset == group.file_offset + int(group.offsets[2])
            assert "\n" not in str(caught.value)
            assert len(lengths) < 10
            reader.read_run(group, 2, 2, out)


@pytest.mark.parametrize("io", MODES)
def test_a_file_that_shrinks(model: Path, io: str) -> None:
    opened = read_model(model)
    group = opened.group("layers.1.ffn")
    out = aligned(nbytes(group, 0, group.units))
    if sys.platform == "win32" and io == "mmap":
        pytest.skip("a mapped file cannot be truncated here")
    with UnitReader(opened, io) as reader:
        reader.read_run(group, 0, 2, out)
        end = group.file_offset + int(group.offsets[1]) + 100
        with (model / UNITS).open("r+b") as file:
            file.truncate(end)
        reader.read_run(group, 0, 1, out)
        with pytest.raises(ModelIOError, match="changed while in use") as caught:
            reader.read_run(group, 0, 2, out)
        assert (caught.value.path, caught.value.offset) == (model / UNITS, end)


@pytest.mark.parametrize("io", MODES)
def test_a_closed_reader_opens_nothing_again(pristine: Path, io: str) -> None:
    model = read_model(pristine)
    group = model.group("embed")
    out = aligned(nbytes(group, 0, 1))
    reader = UnitReader(model, io)
    reader.read_run(group, 0, 1, out)
    reader.close()
    reader.close()
    with pytest.raises(EngineError, match="closed"):
        reader.read_run(group, 0, 1, out)
    with pytest.raises(EngineError, match="closed"):
        reader.read_units(group, [0], [out])
    with pytest.raises(EngineError, match="closed"):
        reader.read([(UNITS, 0, 1)], [out])
