"""Reading units: the same bytes whatever the way, or an error that says where."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import UNITS

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError
from flashllm.flash import files
from flashllm.flash.files import (
    DirectFile,
    MappedFile,
    PositionedFile,
    Scratch,
    SeekFile,
    open_file,
)
from flashllm.flash.format import Group, read_model
from flashllm.flash.reader import UnitReader

OPENERS: dict[str, Callable[[Path], files.ReadableFile]] = {
    "direct": lambda path: open_file(path, "direct", Scratch()),
    "pread": lambda path: open_file(path, "pread", Scratch()),
    "no direct": lambda path: open_file(path, "direct", Scratch(), direct=False),
    "seek": lambda path: open_file(path, "pread", Scratch(), positioned=False),
    "mmap": lambda path: open_file(path, "mmap", Scratch()),
}


def aligned(size: int) -> np.ndarray:
    """`size` bytes of memory that begins on a page."""
    memory = np.zeros(size + 4096, np.uint8)
    return memory[-memory.ctypes.data % 4096 :][:size]


def buffers(group: Group, ids: list[int]) -> list[np.ndarray]:
    return [np.zeros(int(group.lengths[unit]), np.uint8) for unit in ids]


def read_all(path: Path, io: str = "pread", threads: int = 4) -> dict[str, bytes]:
    """All units of all groups, joined."""
    model = read_model(path)
    with UnitReader(model, io, threads) as reader:
        joined = {}
        for name, group in model.groups.items():
            out = buffers(group, list(range(group.units)))
            reader.read_units(group, range(group.units), out)
            joined[name] = b"".join(unit.tobytes() for unit in out)
        return joined


@pytest.mark.parametrize("way", OPENERS)
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 1), (0, 4096), (1, 4096), (4095, 2), (8192, 100_001), (12_345, 54_321)],
)
def test_extents_whatever_their_alignment(
    pristine: Path, way: str, offset: int, length: int
) -> None:
    raw = (pristine / UNITS).read_bytes()
    file = OPENERS[way](pristine / UNITS)
    for out in (np.zeros(length, np.uint8), aligned(length), aligned(length + 1)[1:]):
        file.read_into(offset, out)
        assert out.tobytes() == raw[offset : offset + length]
    file.close()


@pytest.mark.parametrize("way", OPENERS)
def test_the_end_of_the_file(pristine: Path, way: str) -> None:
    raw = (pristine / UNITS).read_bytes()
    file = OPENERS[way](pristine / UNITS)
    tail = np.zeros(5000, np.uint8)
    file.read_into(len(raw) - 5000, tail)
    assert tail.tobytes() == raw[-5000:]
    with pytest.raises(ModelIOError) as caught:
        file.read_into(len(raw) - 5000, np.zeros(5001, np.uint8))
    assert (caught.value.path, caught.value.offset) == (pristine / UNITS, len(raw))
    file.close()


def test_ways_fall_back_to_what_the_system_can(pristine: Path) -> None:
    kinds = {}
    for way, opener in OPENERS.items():
        file = opener(pristine / UNITS)
        kinds[way] = type(file)
        file.close()
    assert kinds["direct"] in (DirectFile, PositionedFile)
    assert kinds["no direct"] is kinds["pread"] is PositionedFile
    assert kinds["seek"] is SeekFile
    assert kinds["mmap"] is MappedFile


def test_a_file_system_without_direct_reads(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DirectFile, path: Path, scratch: Scratch) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(DirectFile, "__init__", refuse)
    model = read_model(pristine)
    with UnitReader(model, "direct") as reader:
        group = model.group("embed")
        assert reader.fallback is None
        reader.read_units(group, [0], buffers(group, [0]))
        assert reader.io == "pread"
        assert reader.fallback is not None
        assert f"{pristine / UNITS}: this file system" in reader.fallback
        assert "'direct'" in reader.fallback
    assert read_all(pristine, "direct") == read_all(pristine, "pread")


def test_a_closed_file_is_not_mapped(pristine: Path) -> None:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc")
    file = open_file(pristine / UNITS, "mmap", Scratch())
    file.read_into(0, np.zeros(10, np.uint8))
    assert str(pristine / UNITS) in maps.read_text()
    file.close()
    assert str(pristine / UNITS) not in maps.read_text()


def test_a_file_that_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    file = open_file(tmp_path / "empty", "mmap", Scratch())
    assert file.io == "pread"
    file.close()
    with pytest.raises(ModelIOError, match="cannot open"):
        open_file(tmp_path / "none", "mmap", Scratch())


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_modes_that_need_no_fallback(pristine: Path, io: str) -> None:
    model = read_model(pristine)
    with UnitReader(model, io) as reader:
        reader.read([(UNITS, 0, 1)], [np.zeros(1, np.uint8)])
        assert (reader.io, reader.fallback) == (io, None)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("io", ["auto", "direct", "mmap"])
def test_modes_and_threads_agree(pristine: Path, io: str, threads: int) -> None:
    assert read_all(pristine, io, threads) == read_all(pristine)


def test_units_in_any_order_and_buffers_with_room(pristine: Path) -> None:
    model = read_model(pristine)
    group = model.group("layers.1.ffn")
    ids = [3, 0, 3, 1]
    with UnitReader(model) as reader:
        exact = buffers(group, ids)
        reader.read_units(group, ids, exact)
        roomy = [aligned(int(group.lengths[unit]) + 4096) for unit in ids]
        reader.read_units(group, ids, [memoryview(out) for out in roomy])
    for unit, small, large in zip(ids, exact, roomy, strict=True):
        length = int(group.lengths[unit])
        assert small.tobytes() == large[:length].tobytes()
        assert not large[length:].any()
    np.testing.assert_array_equal(exact[0], exact[2])


def test_extents_by_file_name(pristine: Path) -> None:
    raw = (pristine / "tokenizer.json").read_bytes()
    with UnitReader(read_model(pristine)) as reader:
        out = [np.zeros(10, np.uint8), np.zeros(300_000, np.uint8)]
        reader.read([("tokenizer.json", 5, 10), (UNITS, 0, 300_000)], out)
        assert out[0].tobytes() == raw[5:15]
        assert out[1].tobytes() == (pristine / UNITS).read_bytes()[:300_000]
        with pytest.raises(InvalidInput, match="passwd"):
            reader.read([("../../etc/passwd", 0, 10)], out[:1])


def test_what_callers_get_wrong(pristine: Path) -> None:
    model = read_model(pristine)
    group = model.group("embed")
    good = buffers(group, [0])[0]
    read_only = good.copy()
    read_only.flags.writeable = False
    with pytest.raises(InvalidInput, match="mmap"):
        UnitReader(model, "uring")
    with UnitReader(model) as reader:
        for bad in (
            good[:-1],
            good.astype(np.int16),
            read_only,
            np.zeros((2, len(good)), np.uint8),
        ):
            with pytest.raises(InvalidInput, match="buffer"):
                reader.read_units(group, [0], [bad])
        with pytest.raises(InvalidInput, match="buffers"):
            reader.read_units(group, [0], [])
        for unit in (-1, group.units):
            with pytest.raises(InvalidInput, match="units 0 to"):
                reader.read_units(group, [unit], [good])


@pytest.mark.parametrize("io", ["direct", "pread", "mmap"])
def test_a_flipped_bit_in_any_unit_is_found(model: Path, io: str) -> None:
    opened = read_model(model)
    rng = np.random.default_rng(5)
    with (model / UNITS).open("r+b", buffering=0) as file, UnitReader(opened, io) as reader:
        for name, group in opened.groups.items():
            for unit in range(group.units):
                place = group.file_offset + int(group.offsets[unit])
                place += int(rng.integers(group.lengths[unit]))
                mask = 1 << int(rng.integers(8))
                flip(file.fileno(), place, mask)
                with pytest.raises(CorruptModel) as caught:
                    reader.read_units(group, [unit], buffers(group, [unit]))
                assert f"{model / UNITS}: unit {unit} of {name!r}" in str(caught.value)
                flip(file.fileno(), place, mask)
    assert read_all(model)


def flip(fd: int, place: int, mask: int) -> None:
    """Flip bits of one byte."""
    os.pwrite(fd, bytes([os.pread(fd, 1, place)[0] ^ mask]), place)


def test_one_bad_unit_among_many(model: Path) -> None:
    opened = read_model(model)
    group = opened.group("layers.0.ffn")
    with (model / UNITS).open("r+b", buffering=0) as file:
        flip(file.fileno(), group.file_offset + int(group.offsets[2]), 1)
    ids = list(range(group.units))
    with UnitReader(opened, "pread") as reader, pytest.raises(CorruptModel, match="unit 2 of"):
        reader.read_units(group, ids, buffers(group, ids))


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_truncated_or_gone_while_running(model: Path, io: str) -> None:
    opened = read_model(model)
    group = opened.group("layers.1.ffn")
    with UnitReader(opened, io) as reader:
        reader.read_units(group, [0], buffers(group, [0]))
        with (model / UNITS).open("r+b") as file:
            file.truncate(group.file_offset + 100)
        with pytest.raises(ModelIOError) as caught:
            reader.read_units(group, [0, 1], buffers(group, [0, 1]))
        assert caught.value.path == model / UNITS
        assert caught.value.offset is not None
        assert "\n" not in str(caught.value)
        with pytest.raises(ModelIOError, match="cannot open"):
            (model / "tokenizer.json").unlink()
            reader.read([("tokenizer.json", 0, 1)], [np.zeros(1, np.uint8)])


def test_a_mapped_file_that_shrinks(model: Path) -> None:
    """In a child process: a bug here would kill it with SIGBUS instead of raising."""
    if sys.platform == "win32":
        pytest.skip("a mapped file cannot be truncated here")
    program = """
import sys, pathlib, numpy
from flashllm.errors import ModelIOError
from flashllm.flash.files import Scratch, open_file
path = pathlib.Path(sys.argv[1])
file, whole = open_file(path, "mmap", Scratch()), path.stat().st_size
with path.open("r+b") as shorter:
    shorter.truncate(whole // 2)
out = numpy.zeros(whole, numpy.uint8)
for offset in (0, whole // 2 - 10, whole - 1):
    try:
        file.read_into(offset, out[: whole - offset])
    except ModelIOError as error:
        print(error.offset)
file.read_into(0, out[: whole // 2])
with path.open("ab") as longer:
    longer.write(bytes(whole))
file.read_into(0, out)
print(file.io, bytes(out[: whole // 2]) == path.read_bytes()[: whole // 2])
file.close()
try:
    file.read_into(0, out)
except ModelIOError as error:
    print("closed")
"""
    size = (model / UNITS).stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", program, model / UNITS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    half = str(size // 2)
    assert done.stdout.split() == [half, half, str(size - 1), "mmap", "True", "closed"]


@pytest.mark.parametrize("io", ["direct", "pread"])
def test_short_reads_are_completed(
    pristine: Path, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_all(pristine)
    real, calls = os.preadv, iter(range(1 << 30))

    def short(fd: int, views: list[memoryview], offset: int) -> int:
        length = len(views[0])
        if next(calls) % 3 == 0 and length > 4096:
            step = 4096 if io == "direct" else 1
            return real(fd, [views[0][: length // 2 // step * step]], offset)
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", short)
    assert read_all(pristine, io) == whole


def test_an_error_that_passes_is_retried(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_all(pristine)
    real, calls = os.preadv, iter(range(1 << 30))

    def flaky(fd: int, views: list[memoryview], offset: int) -> int:
        if next(calls) % 4 == 0:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, views, offset)

    monkeypatch.setattr(os, "preadv", flaky)
    assert read_all(pristine, threads=1) == whole


def test_an_error_that_stays_is_reported(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(pristine)
    group = model.group("layers.0.ffn")
    with UnitReader(model, "pread") as reader:

        def broken(fd: int, views: list[memoryview], offset: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "preadv", broken)
            with pytest.raises(ModelIOError, match="Input/output error") as caught:
                reader.read_units(group, [1], buffers(group, [1]))
        assert caught.value.offset == group.file_offset + int(group.offsets[1])
        reader.read_units(group, [1], buffers(group, [1]))


def test_many_threads_share_a_reader(pristine: Path) -> None:
    model = read_model(pristine)
    group = model.group("layers.0.ffn")
    expected = buffers(group, list(range(group.units)))
    failures: list[BaseException] = []
    with UnitReader(model) as reader:
        reader.read_units(group, range(group.units), expected)

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                for _ in range(20):
                    ids = rng.integers(group.units, size=3).tolist()
                    out = buffers(group, ids)
                    reader.read_units(group, ids, out)
                    for unit, data in zip(ids, out, strict=True):
                        np.testing.assert_array_equal(data, expected[unit])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


@pytest.mark.parametrize("io", ["direct", "pread", "mmap"])
def test_closing_leaves_no_file_open(pristine: Path, io: str) -> None:
    model = read_model(pristine)
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    before = len(list(folder.iterdir()))
    for _ in range(3):
        with UnitReader(model, io) as reader:
            group = model.group("embed")
            reader.read_units(group, [0], buffers(group, [0]))
    assert len(list(folder.iterdir())) == before
