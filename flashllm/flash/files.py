"""Files opened for reads by offset: direct where Linux can, positioned, seek and read, or mapped.

All but the mapped ones raise an error when a file is truncated or its disk fails.
"""

from __future__ import annotations

import abc
import errno
import mmap
import os
import sys
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import ModelIOError
from flashllm.flash.layout import ALIGNMENT, round_up

ATTEMPTS = 3  # of a read that fails with EIO, which a bus reset can cause once
BOUNCE_BYTES = 1 << 20

Bytes = NDArray[np.uint8]


class Scratch(threading.local):
    """A page-aligned buffer for each thread, for direct reads into memory that is not."""

    def __init__(self) -> None:
        self.bounce: Bytes = np.frombuffer(mmap.mmap(-1, BOUNCE_BYTES), np.uint8)


class ReadableFile(abc.ABC):
    """An open file whose bytes are read by offset, from any thread.

    io: how it is read, "direct", "pread" or "mmap".
    """

    io: ClassVar[str] = "pread"

    def __init__(self, path: Path):
        self.path = path

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill `out` from byte `offset`, however short the system's reads are.

        Raises ModelIOError if the file ends first or keeps failing.
        """
        done = failures = 0
        while done < len(out):
            try:
                got = self._read_some(offset + done, out[done:])
            except OSError as error:
                failures += 1
                if error.errno != errno.EIO or failures == ATTEMPTS:
                    raise self._failed(offset + done, f"cannot read: {error.strerror}") from None
                continue
            if got == 0:
                raise self._failed(offset + done, "the file ends; it changed while in use")
            done += got

    @abc.abstractmethod
    def _read_some(self, offset: int, out: Bytes) -> int:
        """Read at least one byte into `out`, or none at the end of the file."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file; reads fail afterwards."""

    def _failed(self, offset: int, what: str) -> ModelIOError:
        return ModelIOError(f"{self.path}: at byte {offset}: {what}", self.path, offset)


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

    def __init__(self, path: Path, flags: int = 0):
        super().__init__(path)
        self._fd = os.open(path, os.O_RDONLY | flags)

    def _read_some(self, offset: int, out: Bytes) -> int:
        return os.preadv(self._fd, [out.data], offset)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class DirectFile(PositionedFile):
    """preadv past the page cache (O_DIRECT): offsets, lengths and memory in whole 4 KiB pages.

    Reads into memory that is aligned go straight there, others through the thread's bounce buffer.
    """

    io = "direct"

    def __init__(self, path: Path, scratch: Scratch):
        """Raises OSError where the file system cannot."""
        super().__init__(path, os.O_DIRECT if sys.platform == "linux" else 0)
        self._scratch = scratch
        try:
            self._read_some(0, np.empty(1, np.uint8))
        except OSError:
            self.close()
            raise

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


class MappedFile(ReadableFile):
    """The file mapped into memory, whose bytes are copied out: what the system reads ahead counts.

    A file that is too short is an error as elsewhere, because its size is looked up before every
    copy. But one that is truncated during a copy, or that the disk fails to give, kills the
    process (SIGBUS): no program can turn a page that does not come into an error.
    """

    io = "mmap"

    def __init__(self, path: Path):
        """Raises OSError where the file cannot be mapped; an empty one cannot."""
        super().__init__(path)
        with path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise OSError(errno.ENODEV, "an empty file cannot be mapped")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

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


CAN_READ_DIRECT = sys.platform == "linux"
CAN_READ_POSITIONED = sys.platform != "win32"


def open_file(
    path: Path,
    io: str,
    scratch: Scratch,
    *,
    direct: bool = CAN_READ_DIRECT,
    positioned: bool = CAN_READ_POSITIONED,
) -> ReadableFile:
    """Open `path` as `io` ("direct", "pread" or "mmap") says, or the next best way there is.

    direct and positioned say what this system can do. Raises ModelIOError.
    """
    try:
        if io == "mmap":
            try:
                return MappedFile(path)
            except OSError as error:
                if error.errno != errno.ENODEV:  # what file systems without maps say
                    raise
        if io == "direct" and direct:
            try:
                return DirectFile(path, scratch)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                    raise
        return PositionedFile(path) if positioned else SeekFile(path)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None
