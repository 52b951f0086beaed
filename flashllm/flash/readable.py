"""A file whose bytes are read by offset, whatever the way: whole reads, or an error."""

from __future__ import annotations

import abc
import errno
import mmap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import ModelIOError

ATTEMPTS = 3  # of a read that fails with EIO at one place, which a bus reset can cause once
BOUNCE_BYTES = 1 << 20

Bytes = NDArray[np.uint8]


class Scratch(threading.local):
    """A page-aligned buffer for each thread, for direct reads into memory that is not."""

    def __init__(self) -> None:
        self.bounce: Bytes = np.frombuffer(mmap.mmap(-1, BOUNCE_BYTES), np.uint8)


class ReadableFile(abc.ABC):
    """An open file whose bytes are read by offset, from any thread.

    serves: the modes that it is what was asked for in; where another was asked for, the file
    system could not.
    """

    serves: ClassVar[tuple[str, ...]] = ("pread",)

    def __init__(self, path: Path):
        self.path = path

    @property
    def io(self) -> str:
        """How it is read now: "direct", "pread" or "mmap"."""
        return "pread"

    @property
    def direct_descriptor(self) -> int | None:
        """What it is read by past the page cache, if so it is read now."""
        return None

    def read_into(self, offset: int, out: Bytes) -> None:
        """Fill `out` from byte `offset`, however short the system's reads are.

        Raises ModelIOError if the file ends first or keeps failing.
        """
        self._complete(offset, len(out), lambda done: self._read_some(offset + done, out[done:]))

    def read_into_many(self, offsets: Sequence[int], outs: Sequence[memoryview]) -> None:
        """Fill each of `outs` (writable bytes) from its byte offset, none before the last's end.

        Where the system can, by one read: it reads what lies between them as well, and drops it.
        Raises as read_into.
        """
        for offset, out in zip(offsets, outs, strict=True):
            self.read_into(offset, np.asarray(out))

    def _complete(self, offset: int, nbytes: int, read: Callable[[int], int]) -> None:
        """Have read(bytes done) read on until all `nbytes` from byte `offset` are there."""
        done = failures = 0
        while done < nbytes:
            try:
                got = read(done)
            except OSError as error:
                failures += 1
                if error.errno != errno.EIO or failures == ATTEMPTS:
                    raise self._failed(offset + done, f"cannot read: {error.strerror}") from None
                continue
            if got == 0:
                raise self._failed(offset + done, "the file ends; it changed while in use")
            done += got
            failures = 0

    @abc.abstractmethod
    def _read_some(self, offset: int, out: Bytes) -> int:
        """Read at least one byte into `out`, or none at the end of the file."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the file; reads fail afterwards."""

    def _failed(self, offset: int, what: str) -> ModelIOError:
        return ModelIOError(f"{self.path}: at byte {offset}: {what}", self.path, offset)
