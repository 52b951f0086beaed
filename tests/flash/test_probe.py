"""Mode "auto": from the page cache what lies there, for as long as it does, else direct."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import UNITS

from flashllm.flash import files
from flashllm.flash.files import (
    MISS_WEIGHT,
    MOST_DOUBT,
    CachedFile,
    DirectFile,
    PositionedFile,
    Scratch,
    open_file,
)
from flashllm.flash.format import read_model
from flashllm.flash.probe import MOST_MISSING, PAGES, is_cached
from flashllm.flash.reader import UnitReader

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what it caches")

PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """8 MiB, every page another, just written and so in the page cache."""
    path = tmp_path / "file"
    path.write_bytes(np.random.default_rng(1).bytes(8 << 20))
    if not is_cached(path):
        pytest.skip("this file system does not tell what is cached")
    return path


def drop(path: Path) -> None:
    """Have the system forget a file's pages."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def open_auto(path: Path) -> files.ReadableFile:
    return open_file(path, "auto", Scratch())


class Cache:
    """os.preadv with a page cache that has what the test says.

    has: told how many reads there were before, whether the next one is served.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.has: Callable[[int], bool] = lambda before: True
        self.error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        self.asked: list[int] = []
        real = os.preadv

        def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
            if not flags & os.RWF_NOWAIT:
                return real(fd, views, offset, flags)
            self.asked.append(offset)
            if not self.has(len(self.asked) - 1):
                raise self.error
            return real(fd, views, offset)

        monkeypatch.setattr(os, "preadv", preadv)


def test_a_file_that_was_just_written_and_one_that_was_dropped(file: Path) -> None:
    assert is_cached(file)
    drop(file)
    for _ in range(20):  # looks may not warm up what the next one sees
        assert not is_cached(file)
        time.sleep(0.005)
    file.read_bytes()
    assert is_cached(file)


def test_a_file_may_lack_a_little(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in range(PAGES):
        with monkeypatch.context() as patch:
            cache = Cache(patch)
            cache.has = lambda before, missing=missing: before * 7 % PAGES >= missing
            assert is_cached(file) == (missing <= MOST_MISSING)


def test_looks_are_spread_over_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(monkeypatch)
    assert is_cached(file)
    parts = [offset * PAGES // (8 << 20) for offset in cache.asked]
    assert parts == list(range(PAGES))


@pytest.mark.parametrize("size", [0, 1, PAGE, 3 * PAGE + 5])
def test_files_of_few_pages(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small"
    path.write_bytes(bytes(size))
    cache = Cache(monkeypatch)
    assert is_cached(path) == (size > 0)
    cache.has = lambda before: False
    assert not is_cached(path)
    assert all(offset < size for offset in cache.asked)


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_cannot_tell(
    file: Path, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(monkeypatch)
    cache.has, cache.error = lambda before: False, OSError(code, os.strerror(code))
    assert not is_cached(file)
    opened = open_auto(file)
    assert type(opened) is DirectFile
    opened.close()


def test_what_auto_opens(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    for cached, options in (
        (True, {}),
        (False, {}),
        (True, {"tell_cached": False}),
        (True, {"direct": False}),
        (True, {"io": "direct"}),
        (False, {"io": "pread"}),
    ):
        monkeypatch.setattr(files, "is_cached", lambda path, cached=cached: cached)
        opened = open_file(file, **{"io": "auto", "scratch": Scratch(), **options})
        kinds.append((type(opened), opened.io))
        opened.close()
    assert kinds == [
        (CachedFile, "pread"),
        (DirectFile, "direct"),
        (DirectFile, "direct"),
        (PositionedFile, "pread"),
        (DirectFile, "direct"),
        (PositionedFile, "pread"),
    ]


def test_reads_come_from_the_cache_until_it_fails_for_good(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = np.frombuffer(file.read_bytes(), np.uint8)
    cache = Cache(monkeypatch)
    opened, out = open_auto(file), np.zeros(2 * PAGE, np.uint8)
    assert isinstance(opened, CachedFile)

    def read(found: bool) -> None:
        cache.has = lambda before: found
        offset = int(rng.integers(len(raw) - len(out)))
        opened.read_into(offset, out)
        np.testing.assert_array_equal(out, raw[offset : offset + len(out)])

    rng = np.random.default_rng(2)
    for _ in range(30):  # now and then a page is missing: nothing to give up for
        read(False)
        for _ in range(MISS_WEIGHT):
            read(True)
        assert opened.io == "pread"
    for _ in range(MOST_DOUBT // MISS_WEIGHT):
        assert opened.io == "pread"
        read(False)
    assert opened.io == "direct"
    asked = len(cache.asked)
    read(True)
    assert len(cache.asked) == asked
    opened.close()


def test_a_read_of_which_the_cache_has_a_part(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = file.read_bytes()
    opened, real = open_auto(file), os.preadv

    def half(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags & os.RWF_NOWAIT:
            return real(fd, views, offset, flags)
        if offset >= 5 * PAGE:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return real(fd, [views[0][: 5 * PAGE - offset]], offset, flags)

    monkeypatch.setattr(os, "preadv", half)
    out = np.zeros(10 * PAGE, np.uint8)
    opened.read_into(PAGE, out)
    assert out.tobytes() == raw[PAGE : 11 * PAGE]
    opened.close()


def test_closing_a_cached_file_leaves_nothing_open(file: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        opened = open_auto(file)
        assert isinstance(opened, CachedFile)
        opened.close()
        opened.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("cached", "io"), [(True, "pread"), (False, "direct")])
def test_the_reader_says_how_it_reads(
    pristine: Path, cached: bool, io: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "is_cached", lambda path: cached)
    with UnitReader(read_model(pristine), "auto") as reader:
        reader.read([(UNITS, 0, 1)], [np.zeros(1, np.uint8)])
        if reader.fallback:
            pytest.skip("this file system has no direct reads")
        assert reader.io == io
        cached = False
        reader.read([("tokenizer.json", 0, 1)], [np.zeros(1, np.uint8)])
        assert reader.io == "direct"


def test_auto_says_where_it_cannot_read_direct(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: DirectFile, path: Path, scratch: Scratch) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(DirectFile, "__init__", refuse)
    for cached in (True, False):
        monkeypatch.setattr(files, "is_cached", lambda path, cached=cached: cached)
        with UnitReader(read_model(pristine), "auto") as reader:
            reader.read([(UNITS, 0, 1)], [np.zeros(1, np.uint8)])
            assert reader.io == "pread"
            assert reader.fallback is not None
            assert f"{pristine / UNITS}: this file system" in reader.fallback
            assert "'direct'" in reader.fallback


def test_a_memory_file_system() -> None:
    """tmpfs tells nothing of its pages, and has direct reads since Linux 6.6."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        pytest.skip("needs /dev/shm")
    path = folder / f"flashllm-test-{os.getpid()}"
    path.write_bytes(bytes(range(256)) * 64)
    try:
        opened, out = open_auto(path), np.zeros(10_000, np.uint8)
        assert opened.io in ("direct", "pread")
        opened.read_into(3, out)
        assert out.tobytes() == path.read_bytes()[3:10_003]
        opened.close()
    finally:
        path.unlink()
