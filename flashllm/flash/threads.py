"""Threads that work off a queue: what the readers that read for others have in common."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from flashllm.closing import Closing
from flashllm.errors import EngineError, InvalidInput

POLL_S = 0.2
"""How often a waiting thread looks up: an endless wait ignores Ctrl-C on Windows."""

Task = TypeVar("Task")


def wait_for(event: threading.Event) -> None:
    """Return when it is set."""
    while not event.wait(POLL_S):
        pass


class QueueThreads(Closing, Generic[Task]):
    """Threads that take tasks in the order put. Close it before what they read with.

    Any thread may call.
    """

    def __init__(self, name: str, threads: int, work: Callable[[Iterator[Task]], None]):
        """Each thread calls work(tasks), which ends when the tasks do.

        Raises InvalidInput if there are no threads.
        """
        if threads < 1:
            raise InvalidInput(f"{threads} threads cannot read; use 1 or more")
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        # The threads know the queue alone: who forgets to close is not kept alive by them.
        tasks = self._queue
        self._threads = [
            threading.Thread(
                target=lambda: work(iter(tasks.get, None)), name=f"{name}-{i}", daemon=True
            )
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def _put(self, *tasks: Task) -> None:
        """Queue tasks. Raises EngineError after close."""
        with self._lock:
            if self._closed:
                raise EngineError("reading has ended; open the model again")
            for task in tasks:
                self._queue.put(task)

    def _close(self, drop: Callable[[Task], None] | None = None) -> None:
        """Finish what has been put, or drop(what no thread has taken); end the threads."""
        with self._lock:
            if not self._closed:
                self._closed = True
                if drop is not None:
                    self._drop_queued(drop)
                for _ in self._threads:
                    self._queue.put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(POLL_S)

    def _drop_queued(self, drop: Callable[[Task], None]) -> None:
        try:
            while (task := self._queue.get_nowait()) is not None:
                drop(task)
        except queue.Empty:
            pass
