"""Work done by threads, its results handed out in order, a bounded amount of them at a time."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Job(Generic[Result]):
    """Something to do, and the bytes that its result takes until it is handed out."""

    nbytes: int
    run: Callable[[], Result]


def run_ordered(
    jobs: Iterator[Job[Result]], threads: int, room: int
) -> Generator[Result, None, None]:
    """The results of `jobs`, in their order, worked on by so many threads ahead of the caller.

    Jobs begin in order, so one may wait for those before it. No more begin than leave results of
    `room` bytes together, one aside. The first exception, in order, is raised; it, and closing the
    iterator, end the rest, after the jobs under way.
    """
    waiting: collections.deque[tuple[int, concurrent.futures.Future[Result]]] = collections.deque()
    taken = 0
    with concurrent.futures.ThreadPoolExecutor(threads, "convert") as pool:
        try:
            for job in jobs:
                while waiting and taken + job.nbytes > room:
                    nbytes, future = waiting.popleft()
                    taken -= nbytes
                    yield future.result()
                waiting.append((job.nbytes, pool.submit(job.run)))
                taken += job.nbytes
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
