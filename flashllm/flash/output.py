"""A new file, written once from front to back: preallocated, hashed on the way, then synced."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flashllm.errors import DiskFull, ModelIOError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_CANNOT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})

Allocate = Callable[[int, int, int], None]
POSIX_FALLOCATE: Allocate | None = getattr(os, "posix_fallocate", None)
"""None on systems without it, where a full disk is noticed only while writing."""


class OutputFile:
    """A file being written; `nbytes` of it so far, whose xxh3_64 is `hash`."""

    def __init__(self, path: Path, size: int, allocate: Allocate | None = POSIX_FALLOCATE):
        """Create `path` and take `size` bytes of disk for it. Raises DiskFull, ModelIOError."""
        self.path = path
        self.nbytes = 0
        self._hasher = xxhash.xxh3_64()
        try:
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise write_error(path, error) from None
        try:
            if allocate and size:
                allocate(self._file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in _CANNOT:
                self._file.close()
                raise write_error(path, error) from None

    @property
    def hash(self) -> str:
        """xxh3_64 of what was written: 16 hex digits."""
        return self._hasher.hexdigest()

    def write(self, data: bytes | NDArray[Any]) -> None:
        """Append `data`, all of it. Raises DiskFull, ModelIOError."""
        view = memoryview(np.frombuffer(data, np.uint8).data)
        self._hasher.update(view)
        try:
            while view:
                written = self._file.write(view)
                view = view[written:]
                self.nbytes += written
        except OSError as error:
            raise write_error(self.path, error, self.nbytes) from None

    def sync(self) -> None:
        """Have the disk hold everything. Raises DiskFull, ModelIOError; a failed sync is final."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error, self.nbytes) from None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._file.close()


def write_error(path: Path, error: OSError, offset: int | None = None) -> ModelIOError:
    """What to raise when writing `path` failed: DiskFull if that is why."""
    if error.errno in _NO_ROOM:
        return DiskFull(f"{path}: the disk is full; free some space and try again", path, offset)
    return ModelIOError(f"{path}: cannot write: {error.strerror}", path, offset)
