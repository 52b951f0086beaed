"""A lock between processes, held through an open file: the system frees it even if we die."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from flashllm.errors import ModelIOError

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# EAGAIN from flock; EACCES and EDEADLK from Windows.
_HELD_BY_ANOTHER = (errno.EAGAIN, errno.EACCES, errno.EDEADLK)


@contextlib.contextmanager
def locked(
    path: Path,
    on_wait: Callable[[], None] = lambda: None,
    try_lock: Callable[[IO[bytes]], None] = _try_lock,
    poll_s: float = 0.2,
) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block, waiting for whoever has it.

    on_wait is called once if there is someone to wait for. The file stays behind, empty: removing
    it would let two processes hold two files of the same name. Some network disks cannot lock;
    there the block runs unlocked. Raises ModelIOError if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ModelIOError(f"cannot write to {path.parent}: {error.strerror}", path) from error
    with file:
        _wait_for(file, try_lock, on_wait, poll_s)
        yield


def _wait_for(
    file: IO[bytes],
    try_lock: Callable[[IO[bytes]], None],
    on_wait: Callable[[], None],
    poll_s: float,
) -> None:
    told = False
    while True:
        try:
            return try_lock(file)
        except OSError as error:
            if error.errno not in _HELD_BY_ANOTHER:
                return None
        if not told:
            on_wait()
            told = True
        time.sleep(poll_s)
