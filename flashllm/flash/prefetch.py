"""Reads ahead: runs of units queued in order, read and verified by a few threads of their own."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable
from types import TracebackType

from flashllm.errors import Cancelled, EngineError, InvalidInput
from flashllm.flash.files import Bytes
from flashllm.flash.format import Group
from flashllm.flash.reader import UnitReader

_POLL_S = 0.2
"""How often a waiting thread looks up: an endless wait ignores Ctrl-C on Windows."""


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
        self._join()
        if self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """Drop the read if it has not begun, else wait for it; its buffer is the caller's again."""
        if self._taken.acquire(blocking=False):
            self._finish(Cancelled("the read was dropped before it began"))
        self._join()

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

    def _join(self) -> None:
        while not self._finished.wait(_POLL_S):
            pass


class Prefetcher:
    """Threads that read runs of units in the order asked for, as many at once as there are threads.

    They hold the GIL only between reads and checksums. Close it before the reader. Any thread may
    call.
    """

    def __init__(self, reader: UnitReader, threads: int = 8):
        """Raises InvalidInput if there are no threads."""
        if threads < 1:
            raise InvalidInput(f"{threads} threads cannot read; use 1 or more")
        self._reader = reader
        self._queue: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = [
            threading.Thread(
                target=_work, args=(self._queue,), name=f"flash-ahead-{i}", daemon=True
            )
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, group: Group, first: int, count: int, out: Bytes) -> Pending:
        """Queue UnitReader.read_run(group, first, count, out), whose errors Pending.wait raises.

        Nobody else may touch `out` until then. Raises EngineError after close.
        """
        pending = Pending(functools.partial(self._reader.read_run, group, first, count, out))
        with self._lock:
            if self._closed:
                raise EngineError("reading ahead has ended; open the model again")
            self._queue.put(pending)
        return pending

    def close(self) -> None:
        """Drop what is queued, finish what is being read, end the threads."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._drop_queued()
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(_POLL_S)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _drop_queued(self) -> None:
        try:
            while (pending := self._queue.get_nowait()) is not None:
                pending.cancel()
        except queue.Empty:
            pass


def _work(tasks: queue.SimpleQueue[Pending | None]) -> None:
    """Run what is queued until told to end."""
    while (pending := tasks.get()) is not None:
        pending.run()
