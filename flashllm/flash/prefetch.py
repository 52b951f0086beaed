"""Reads ahead: runs of units queued in order, read and verified by a few threads of their own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator

from flashllm.errors import Cancelled
from flashllm.flash.files import Bytes
from flashllm.flash.format import Group
from flashllm.flash.reader import UnitReader
from flashllm.flash.threads import QueueThreads, wait_for


class Pending:
    """A read under way; made by Prefetcher.start. Any thread may call."""

    def __init__(self, read: Callable[[], None]):
        self._read = read
        self._taken = threading.Lock()  # by the thread that reads, or by the one that drops it
        self._finished = threading.Event()
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more happens: it is read, has failed, or was dropped."""
        return self._finished.is_set()

    def wait(self) -> None:
        """Return when the bytes are there and verified, each time at once after the first.

        Raises, each time, what reading raised (see UnitReader.read_run); Cancelled if it was
        dropped before it began.
        """
        wait_for(self._finished)
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Drop the read if it has not begun, else wait for it; its buffer is the caller's again."""
        if self._taken.acquire(blocking=False):
            self._finish(Cancelled("the read was dropped before it began"))
        wait_for(self._finished)

    def run(self) -> None:
        """Read, unless it was dropped: for the Prefetcher's threads."""
        if not self._taken.acquire(blocking=False):
            return
        try:
            self._read()
        except BaseException as error:
            self._finish(error)
        else:
            self._finish(None)

    def _finish(self, error: BaseException | None) -> None:
        self._error = error
        del self._read  # a read that is over keeps no memory alive
        self._finished.set()


class Prefetcher(QueueThreads[Pending]):
    """Threads that read runs of units in the order asked for, as many at once as there are threads.

    They hold the GIL only between reads and checksums. Close it before the reader. Any thread may
    call.
    """

    def __init__(self, reader: UnitReader, threads: int = 8):
        """Raises InvalidInput if there are no threads."""
        super().__init__("flash-ahead", threads, _run_all)
        self._reader = reader

    def start(self, group: Group, first: int, count: int, out: Bytes) -> Pending:
        """Queue UnitReader.read_run(group, first, count, out), whose errors Pending.wait raises.

        Nobody else may touch `out` until then. Raises EngineError after close.
        """
        pending = Pending(functools.partial(self._reader.read_run, group, first, count, out))
        self._put(pending)
        return pending

    def close(self) -> None:
        """Drop what is queued, finish what is being read, end the threads."""
        self._close(Pending.cancel)


def _run_all(tasks: Iterator[Pending]) -> None:
    for pending in tasks:
        pending.run()
