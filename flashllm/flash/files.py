"""Files opened for reads by offset: direct where Linux can, positioned, seek and read, or mapped.

Or, where a file lies in the page cache already, from there for as long as it does.

All but the mapped ones raise an error when a file is truncated or its disk fails.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flashllm.errors import ModelIOError
from flashllm.flash.layout import ALIGNMENT, round_up
from flashllm.flash.probe import is_cached
from flashllm.flash.readable import Bytes, ReadableFile, Scratch

__all__ = [
    "Bytes",
    "CachedFile",
    "DirectFile",
    "MappedFile",
    "PositionedFile",
    "ReadableFile",
    "Scratch",
    "SeekFile",
    "open_file",
]

MOST_PIECES = 1024  # that one preadv fills, on Linux and macOS (IOV_MAX)
MISS_WEIGHT, MOST_DOUBT = 8, 64
"""A read that the page cache cannot serve counts as much as 8 that it can; how far this may go."""


class SeekFile(ReadableFile):
    """Seek, then read, one thread at a time: works on every system."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._file = path.open("rb", buffering=0)
        self._lock = threading.Lock()

    def _read_some(self, offset: int, out: Bytes) -> int:
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(out.data) or 0

    def close(self) -> None:
        self._file.close()


class PositionedFile(ReadableFile):
    """preadv through the page cache: any number of threads at once."""

    def __init__(self, path: Path, scratch: Scratch, flags: int = 0):
        super().__init__(path)
        self._scratch = scratch
        self._fd = os.open(path, os.O_RDONLY | flags)

    def read_into_many(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> None:
        pieces: list[memoryview] = []
        begin = end = offsets[0]
        for offset, out in zip(offsets, outs, strict=True):
            while end < offset:
                pieces.append(self._scratch.bounce.data[: offset - end])
                end += len(pieces[-1])
            pieces.append(out)
            end += len(out)
        self._complete(
            begin, end - begin, lambda done: self._read_pieces(begin + done, _after(pieces, done))
        )

    def _read_some(self, offset: int, out: Bytes) -> int:
        return self._read_pieces(offset, [out.data])

    def _read_pieces(self, offset: int, pieces: list[memoryview]) -> int:
        """As _read_some, into `pieces` one after another."""
        return os.preadv(self._fd, pieces, offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class DirectFile(PositionedFile):
    """preadv past the page cache (O_DIRECT): offsets, lengths and memory in whole 4 KiB pages.

    Reads into memory that is aligned go straight there, others through the thread's bounce buffer.
    """

    serves = ("direct", "auto")

    def __init__(self, path: Path, scratch: Scratch):
        """Raises OSError where the file system cannot."""
        super().__init__(path, scratch, os.O_DIRECT if sys.platform == "linux" else 0)
        try:
            self._read_some(0, np.empty(1, np.uint8))
        except OSError as error:
            if error.errno != errno.EIO:  # which may pass; else reading will say where it is
                self.close()
                raise

    @property
    def io(self) -> str:
        return "direct"

    @property
    def direct_descriptor(self) -> int | None:
        return self._fd

    def _read_some(self, offset: int, out: Bytes) -> int:
        skip = offset % ALIGNMENT
        pages = len(out) - len(out) % ALIGNMENT
        if pages and not skip and out.ctypes.data % ALIGNMENT == 0:
            return os.preadv(self._fd, [out[:pages].data], offset)
        bounce = self._scratch.bounce
        want = min(round_up(skip + len(out), ALIGNMENT), len(bounce))
        got = os.preadv(self._fd, [bounce[:want].data], offset - skip)
        usable = max(0, min(got - skip, len(out)))
        out[:usable] = bounce[skip : skip + usable]
        return usable

    def _read_pieces(self, offset: int, pieces: list[memoryview]) -> int:
        try:
            return super()._read_pieces(offset, pieces)
        except OSError as error:
            if error.errno != errno.EINVAL:  # which means that something is not in whole pages
                raise
            return self._read_some(offset, np.asarray(pieces[0]))


class CachedFile(PositionedFile):
    """A file found in the page cache: read from there, or past it what is not there.

    Once more than every ninth read or so misses, all are made past it for good: a miss makes Linux
    fetch the bytes into the cache as well, and a cache gives way while a model is used.
    """

    serves = ("auto",)

    def __init__(self, path: Path, scratch: Scratch):
        """Raises OSError where the file system has no direct reads."""
        self._past_cache = DirectFile(path, scratch)
        self._doubt = 0  # that threads may lose a count does no harm
        try:
            super().__init__(path, scratch)
        except OSError:
            self._past_cache.close()
            raise
        # What the cache lacks it fetches although not waited for; let that be no more than asked.
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)

    @property
    def io(self) -> str:
        return "pread" if self._doubt < MOST_DOUBT else "direct"

    @property
    def direct_descriptor(self) -> int | None:
        return None if self._doubt < MOST_DOUBT else self._past_cache.direct_descriptor

    def _read_some(self, offset: int, out: Bytes) -> int:
        got = self._read_cached(offset, [out.data])
        return got or self._past_cache._read_some(offset, out)

    def _read_pieces(self, offset: int, pieces: list[memoryview]) -> int:
        got = self._read_cached(offset, pieces)
        return got or self._past_cache._read_pieces(offset, pieces)

    def _read_cached(self, offset: int, pieces: list[memoryview]) -> int:
        """Read what of it the page cache has; 0 if it has nothing, or is not asked any more."""
        if self._doubt < MOST_DOUBT:
            with contextlib.suppress(BlockingIOError):
                if got := os.preadv(self._fd, pieces, offset, os.RWF_NOWAIT):
                    self._doubt = max(0, self._doubt - 1)
                    return got
            self._doubt += MISS_WEIGHT
        return 0

    def close(self) -> None:
        super().close()
        self._past_cache.close()


class MappedFile(ReadableFile):
    """The file mapped into memory, whose bytes are copied out: what the system reads ahead counts.

    A file that is too short is an error as elsewhere, because its size is looked up before every
    copy. But one that is truncated during a copy, or that the disk fails to give, kills the
    process (SIGBUS): no program can turn a page that does not come into an error.
    """

    serves = ("mmap",)

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be mapped; an empty one cannot."""
        super().__init__(path)
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise OSError(errno.ENODEV, "an empty file cannot be mapped")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def io(self) -> str:
        return "mmap"

    def _read_some(self, offset: int, out: Bytes) -> int:
        mapped = self._map
        if mapped is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        end = min(len(mapped), mapped.size())  # the file's size now, which may have shrunk
        usable = max(0, min(end - offset, len(out)))
        out[:usable] = np.frombuffer(mapped, np.uint8)[offset : offset + usable]
        return usable

    def close(self) -> None:
        # Unmapping by hand would fail under a copy in another thread; the last reference unmaps.
        self._map = None


CAN_READ_DIRECT = CAN_TELL_CACHED = sys.platform == "linux"
CAN_READ_POSITIONED = sys.platform != "win32"


def open_file(
    path: Path,
    io: str,
    scratch: Scratch,
    *,
    direct: bool = CAN_READ_DIRECT,
    positioned: bool = CAN_READ_POSITIONED,
    tell_cached: bool = CAN_TELL_CACHED,
) -> ReadableFile:
    """Open `path` as `io` says ("auto", "direct", "pread" or "mmap"), or the next best way.

    "auto" is direct, except for a file that lies in the page cache. direct, positioned and
    tell_cached say what this system can do. Raises ModelIOError.
    """
    try:
        if io == "mmap":
            try:
                return MappedFile(path)
            except OSError as error:
                if error.errno != errno.ENODEV:  # what file systems without maps say
                    raise
        if io in ("auto", "direct") and direct:
            cached = io == "auto" and tell_cached and is_cached(path)
            try:
                return CachedFile(path, scratch) if cached else DirectFile(path, scratch)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        return PositionedFile(path, scratch) if positioned else SeekFile(path)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None


def _after(pieces: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `pieces` after `done` bytes, or as much of it as one read takes."""
    first = 0
    while done >= len(pieces[first]):
        done -= len(pieces[first])
        first += 1
    return [pieces[first][done:], *pieces[first + 1 : first + MOST_PIECES]]
