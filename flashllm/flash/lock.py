"""A lock between processes, held through an open file: the system frees it even if we die."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from flashllm.flash.output import write_error

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
    *,
    remove: bool = False,
) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block, waiting for whoever has it.

    on_wait is called once if there is someone to wait for; what it raises ends the wait. The file
    stays behind, empty, unless it is to be removed: whoever waited for it then makes a new one.
    Some network disks cannot lock; there the block runs unlocked. Raises DiskFull or ModelIOError
    if the file cannot be made.
    """
    file = _acquire(path, on_wait, try_lock, poll_s)
    with file:
        try:
            yield
        finally:
            if remove and sys.platform != "win32":  # while it is held: nobody else's goes
                path.unlink(missing_ok=True)
    if remove and sys.platform == "win32":  # an open file cannot be removed, nor can one in use
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _acquire(
    path: Path,
    on_wait: Callable[[], None],
    try_lock: Callable[[IO[bytes]], None],
    poll_s: float,
) -> IO[bytes]:
    """The file called `path`, open and locked."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("ab")
        except OSError as error:
            raise write_error(path, error) from error
        try:
            _wait_for(file, try_lock, on_wait, poll_s)
        except BaseException:
            file.close()
            raise
        if _is_at(file, path):
            return file
        file.close()  # whoever had it removed it


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether `file` is what `path` names now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


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
