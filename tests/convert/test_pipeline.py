"""Jobs done by threads: results in order, few at a time, errors at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from flashllm.convert.pipeline import Job, run_ordered


def test_results_come_in_order() -> None:
    def slow(i: int) -> int:
        time.sleep(0.002 * (7 - i % 8))
        return i

    jobs = (Job(1, lambda i=i: slow(i)) for i in range(40))
    assert list(run_ordered(jobs, 4, 100)) == list(range(40))


@pytest.mark.parametrize(("room", "most"), [(0, 1), (10, 1), (20, 2), (45, 4)])
def test_no_more_begin_than_fit(room: int, most: int) -> None:
    begun, taken = [0], [0]

    def jobs() -> Iterator[Job[None]]:
        for _ in range(20):

            def run() -> None:
                begun[0] += 1

            yield Job(10, run)

    for _ in run_ordered(jobs(), 3, room):
        taken[0] += 1
        time.sleep(0.002)
        assert begun[0] - taken[0] <= most + 1


def test_the_first_error_in_order_is_raised_and_ends_the_rest() -> None:
    ran: list[int] = []

    def run(i: int) -> int:
        if i == 3:
            raise KeyError(i)
        if i == 2:
            time.sleep(0.05)
        ran.append(i)
        return i

    found = []
    with pytest.raises(KeyError, match="3"):
        for result in run_ordered((Job(1, lambda i=i: run(i)) for i in range(1000)), 2, 8):
            found.append(result)
    assert found == [0, 1, 2]
    assert len(ran) < 30


def test_closing_waits_for_jobs_under_way_and_drops_the_rest() -> None:
    under_way, ended = threading.Event(), []

    def run(i: int) -> int:
        if i:
            under_way.set()
            time.sleep(0.02)
        ended.append(i)
        return i

    stream = run_ordered((Job(1, lambda i=i: run(i)) for i in range(100)), 2, 10)
    assert next(stream) == 0
    under_way.wait(5)
    stream.close()
    count = len(ended)
    assert count < 20
    time.sleep(0.05)
    assert len(ended) == count
