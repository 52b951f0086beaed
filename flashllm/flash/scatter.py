"""Units read from here and there: near ones joined in one read, the reads shared out to threads."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import FlashError
from flashllm.flash.aio import IOVEC, ReadQueue
from flashllm.flash.files import Scratch
from flashllm.flash.format import Group
from flashllm.flash.layout import ceil_div
from flashllm.flash.reader import UnitReader
from flashllm.flash.threads import QueueThreads, wait_for

THREADS = 16
LEAST_SHARE, MOST_SHARE = 256 << 10, 1 << 20
"""A read longer than a thread's share of the bytes is cut, within these bounds: below the first
the disk is slower, above the second no faster."""

ASYNCHRONOUS_THREADS = 4
"""How many share reads that need no thread each: they begin them, and verify what has come."""

ReadMany = Callable[[ReadQueue, int, int], list[int]]
Failure = tuple[int, int, BaseException]
"""A read that failed: its first unit and the one after its last, as positions, and why."""


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How units are read: read(begin, end) brings units begin .. end-1, which bounds[i] and
    bounds[i + 1] are; nbytes in all.

    share: how many reads a thread takes at a time. read_many(queue, i, j) does reads i .. j-1 and
    returns those that did not succeed, to be done by `read`, which says why if it cannot.
    """

    read: Callable[[int, int], None]
    bounds: list[int]
    nbytes: int
    share: int
    read_many: ReadMany | None


class ScatteredRead:
    """Units on their way; made by ScatteredReader.start. Any thread may call.

    Once it is over: nbytes, what was read, that between units included; reads, by how many reads.
    """

    def __init__(self, units: int, plan: Callable[[], _Plan]):
        """plan() is called by the first thread that reads: the one that starts it has other work,
        and of 0.2 ms that this takes in the midst of a token, most is waiting for memory.
        """
        self.nbytes = self.reads = 0
        self._units = units
        self._make_plan: Callable[[], _Plan] | None = plan
        self._plan: _Plan | None = None
        self._left = self._next = 0
        self._failures: list[Failure] = []
        self._lock = threading.Lock()
        self._finished = threading.Event()
        if not units:
            self._finished.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens."""
        return self._finished.is_set()

    def join(self) -> list[Failure]:
        """Return when nothing more happens: the reads that failed, in order of units."""
        wait_for(self._finished)
        return self._failures

    def work(self, queue: Callable[[], ReadQueue | None]) -> None:
        """Read what no other thread has taken, until nothing is left: for the reader's threads."""
        plan = self._planned()
        if plan is None:
            return
        failed, done = list[Failure](), 0
        while True:
            with self._lock:
                first, stop = self._next, min(self._next + plan.share, self.reads)
                self._next = stop
            if first == stop:
                break
            left: Iterable[int] = range(first, stop)
            if plan.read_many is not None and (asynchronous := queue()) is not None:
                with contextlib.suppress(Exception):  # which then meets `read` as well
                    left = plan.read_many(asynchronous, first, stop)
            for i in left:
                begin, end = plan.bounds[i : i + 2]
                try:
                    plan.read(begin, end)
                except BaseException as error:
                    failed.append((begin, end, error))
            done += stop - first
        if done:
            with self._lock:
                self._failures += failed
                self._left -= done
                last = not self._left
            if last:
                self._failures.sort(key=lambda failure: failure[0])
                self._finish()

    def _planned(self) -> _Plan | None:
        """The plan, made now if it is not; None if nothing is left to do."""
        with self._lock:
            if self._make_plan is not None:
                make, self._make_plan = self._make_plan, None
                try:
                    plan = self._plan = make()
                except BaseException as error:
                    self._failures = [(0, self._units, error)]
                    self._finished.set()
                else:
                    self.nbytes = plan.nbytes
                    self.reads = self._left = len(plan.bounds) - 1
            return self._plan

    def _finish(self) -> None:
        self._plan = None  # a read that is over keeps no memory alive
        self._finished.set()


class ScatteredReader(QueueThreads[ScatteredRead]):
    """Threads that read scattered units. Close it before the reader. Any thread may call.

    Direct reads are asynchronous where the system has that, see ReadQueue, and a few threads share
    them out. What does not succeed so, and all other reads, they make one after another by
    UnitReader.read_scattered; none waits there for the reads of a slower one.
    """

    def __init__(self, reader: UnitReader, threads: int = THREADS):
        """Raises InvalidInput if there are no threads."""
        super().__init__("flash-scattered", threads, _work)
        self._reader = reader
        self._scratch = Scratch()

    def start(
        self,
        group: Group,
        units: NDArray[np.int64],
        memory: memoryview,
        places: NDArray[np.int64],
        gap: int,
    ) -> ScatteredRead:
        """Begin to read `units` (ascending, of the group) and the padding behind each.

        Unit i goes to memory[places[i]:]; nobody else may touch it until the read is over. Units
        with no more than `gap` bytes between them are read together. Each is verified, see
        UnitReader.read_scattered. Nobody may change `units` and `places`. Raises EngineError after
        close.
        """
        file = None
        with contextlib.suppress(FlashError):  # which then meets the reads as well
            file = self._reader.direct_file(group)
        threads = len(self) if file is None else min(len(self), ASYNCHRONOUS_THREADS)

        def plan() -> _Plan:
            begins, ends = group.offsets[units], group.offsets[units + 1]
            bounds = cut_runs(begins, ends, gap, len(self))
            nbytes = int((ends[bounds[1:] - 1] - begins[bounds[:-1]]).sum())

            def read(begin: int, end: int) -> None:
                sizes = (ends - begins)[begin:end].tolist()
                spans = zip(places[begin:end].tolist(), sizes, strict=True)
                out = [memory[place : place + size] for place, size in spans]
                self._reader.read_scattered(group, units[begin:end].tolist(), out)

            if file is None:
                return _Plan(read, bounds.tolist(), nbytes, 1, None)
            share = max(1, ceil_div(len(bounds) - 1, threads))
            many = self._many(file, group, units, (begins, ends), memory, places, bounds)
            return _Plan(read, bounds.tolist(), nbytes, share, many)

        scattered = ScatteredRead(len(units), plan)
        self._put(*[scattered] * min(len(units), threads))
        return scattered

    def _many(
        self,
        file: int,
        group: Group,
        units: NDArray[np.int64],
        extents: tuple[NDArray[np.int64], NDArray[np.int64]],
        memory: memoryview,
        places: NDArray[np.int64],
        bounds: NDArray[np.int64],
    ) -> ReadMany:
        """Does reads of `start` asynchronously: it returns those that did not come right.

        extents: where units begin and end.
        """
        begins, ends = extents

        def read_many(queue: ReadQueue, first: int, stop: int) -> list[int]:
            # Before each unit a piece for the hole before it, dropped where there is none.
            at = slice(bounds[first], bounds[stop])
            base = np.frombuffer(memory, np.uint8).ctypes.data
            ids, starts = units[at].tolist(), places[at].tolist()
            runs = bounds[first : stop + 1] - bounds[first]
            waste = self._scratch.bounce
            pieces = np.zeros((runs[-1], 2), IOVEC)
            pieces["address"][:, 0] = waste.ctypes.data
            pieces["nbytes"][1:, 0] = begins[at][1:] - ends[at][:-1]
            pieces["nbytes"][runs[:-1], 0] = 0
            pieces["address"][:, 1] = base + places[at]
            pieces["nbytes"][:, 1] = ends[at] - begins[at]
            if int(pieces["nbytes"][:, 0].max()) > len(waste):
                return list(range(first, stop))
            used = pieces["nbytes"] > 0
            counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(used.sum(axis=1))])
            sizes = (ends[at][runs[1:] - 1] - begins[at][runs[:-1]]).tolist()
            limits, wrong = runs.tolist(), list[int]()

            def check(i: int, result: int) -> None:
                held = range(limits[i], limits[i + 1])
                if result != sizes[i] or not all(
                    group.is_whole(ids[j], memory[starts[j] :], self._reader.check) for j in held
                ):
                    wrong.append(first + i)

            offsets = group.file_offset + begins[at][runs[:-1]]
            queue.read(file, offsets, pieces[used], counts[runs], check)
            return wrong

        return read_many

    def close(self) -> None:
        """Finish what has been started, end the threads."""
        self._close()


def cut_runs(
    begins: NDArray[np.int64], ends: NDArray[np.int64], gap: int, threads: int
) -> NDArray[np.int64]:
    """The reads for extents begins[i] .. ends[i] (bytes, ascending): read j takes those from
    bounds[j] to bounds[j + 1].

    A hole of more than `gap` bytes ends a read, and so does a thread's share of all bytes.
    """
    count = len(begins)
    if not count:
        return np.zeros(1, np.int64)
    apart = begins[1:] - ends[:-1] > gap
    bounds = _bounds(apart, count)
    sizes = ends[bounds[1:] - 1] - begins[bounds[:-1]]
    share = min(max(int(sizes.sum()) // threads, LEAST_SHARE), MOST_SHARE)
    if int(sizes.max()) <= share:
        return bounds
    into = (ends - np.repeat(begins[bounds[:-1]], np.diff(bounds)) - 1) // share
    return _bounds(apart | (into[1:] != into[:-1]), count)


def _bounds(cut: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """0, where `count` things are cut (before i + 1 if cut[i]), `count`."""
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(cut) + 1, np.array([count])])


def _work(tasks: Iterator[ScatteredRead]) -> None:
    """Read what is queued until told to end."""
    own: list[ReadQueue | None] = []  # made when first needed

    def asynchronous() -> ReadQueue | None:
        if not own:
            own.append(None)
            with contextlib.suppress(OSError):
                own[0] = ReadQueue()
        return own[0]

    for scattered in tasks:
        scattered.work(asynchronous)
    if own and own[0] is not None:
        own[0].close()
