"""The engine: the one thread of this process that computes, whatever the number of open models."""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")

_POLL_S = 0.2


class _Task(Generic[Result]):
    """A call on its way to the engine thread, and its outcome."""

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._done = threading.Event()
        self._result: list[Result] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self) -> Result:
        while not self._done.wait(_POLL_S):  # an endless wait ignores Ctrl-C on Windows
            pass
        if self._error is not None:
            raise self._error
        return self._result[0]


class Engine:
    """A thread that runs tasks in the order they came, short ones also in the middle of others.

    `post` may be called from anywhere.
    """

    def __init__(self) -> None:
        # SimpleQueue, because garbage collection may post from inside another put.
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._urgent: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="flashllm-engine", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[], object]) -> None:
        """Run `work` when its turn comes. Its result is dropped; it must not raise."""
        self._tasks.put(work)

    def submit(self, work: Callable[[], Result], *, urgent: bool = False) -> Callable[[], Result]:
        """Run `work` when its turn comes; what is returned waits, and returns or raises what it
        does.

        urgent: run it in the middle of the task under way, as soon as that calls `run_urgent`.
        """
        if threading.current_thread() is self._thread:
            return work
        task = _Task(work)
        if urgent:
            self._urgent.put(task.run)
            self._tasks.put(self.run_urgent)  # should no task run, or none call it
        else:
            self._tasks.put(task.run)
        return task.wait

    def call(self, work: Callable[[], Result]) -> Result:
        """Run `work` when its turn comes, wait for it, and return or raise what it does."""
        return self.submit(work)()

    def run_urgent(self) -> None:
        """Run what is urgent: for tasks that take long, at moments when nothing is in use."""
        while not self._urgent.empty():
            self._urgent.get()()

    def stop(self) -> None:
        """Finish what is queued and end the thread."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._tasks.get()) is not None:
            work()
            del work  # an idle engine must not keep the last reply alive


_lock = threading.Lock()
_engine: Engine | None = None
_users = 0


def acquire() -> Engine:
    """The process's engine, started if need be; release() it once for every acquire()."""
    global _engine, _users
    with _lock:
        if _engine is None:
            _engine = Engine()
        _users += 1
        return _engine


def release() -> None:
    """Give the engine back; the last user's release ends its thread."""
    global _engine, _users
    with _lock:
        _users -= 1
        if _users == 0 and _engine is not None:
            _engine.stop()
            _engine = None


@contextlib.contextmanager
def borrowed() -> Iterator[Engine]:
    """The process's engine for the length of a `with` block."""
    try:
        yield acquire()
    finally:
        release()


@atexit.register
def _stop_at_exit() -> None:
    """End the thread of models that nobody closed, before the interpreter goes away under it."""
    with _lock:
        if _engine is not None:
            _engine.stop()
