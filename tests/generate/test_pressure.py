"""Following the system's memory: when to use less, when more, and when to leave it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.generate.pressure import (
    GROW_S,
    LOOK_S,
    MemoryWatch,
    Reading,
    next_budget,
    read_memory,
)

GB = 10**9


@pytest.mark.parametrize(
    ("committed", "allowed", "since", "expected"),
    [
        (6 * GB, 6 * GB, 99, None),
        (6 * GB, 6 * GB - GB // 10, 99, None),  # 0.6 % of 16 GB
        (6 * GB, 5 * GB, 0, 5 * GB),  # at once
        (6 * GB, -GB, 0, -GB),
        (6 * GB, 6 * GB + GB // 2, 99, None),
        (6 * GB, 8 * GB, GROW_S, 7 * GB),
        (6 * GB, 8 * GB, GROW_S - 1, None),
    ],
)
def test_decisions_of_a_computer_of_16_gb(
    committed: int, allowed: int, since: float, expected: int | None
) -> None:
    assert next_budget(committed, Reading(allowed, 16 * GB), since) == expected


sizes = st.integers(1, 64_000).map(lambda megabytes: megabytes * 10**6)


@given(sizes, sizes, sizes)
def test_no_change_calls_for_another(committed: int, allowed: int, total: int) -> None:
    """What is free depends on others: after a change, what is allowed in all is the same."""
    reading = Reading(allowed, total)
    changed = next_budget(committed, reading, GROW_S)
    for _ in range(60):
        if changed is None:
            return
        assert changed <= allowed
        further = next_budget(changed, reading, GROW_S)
        assert further is None or further > changed > committed  # grows on, by half each time
        changed = further
    pytest.fail("it never comes to rest")


def test_it_looks_once_a_second() -> None:
    now = 0.0
    watch = MemoryWatch(lambda: Reading(5, 100), lambda: now)
    looked = 0
    for _ in range(1000):
        now += 0.01
        looked += watch.due()
    assert looked == pytest.approx(10 / LOOK_S, abs=1)


def test_it_waits_before_it_grows_again() -> None:
    now = 0.0
    watch = MemoryWatch(lambda: Reading(100, 100), lambda: now)
    assert watch.next_budget(50) is None
    now += GROW_S
    assert watch.next_budget(50) == 75
    watch.changed()
    assert watch.next_budget(75) is None
    now += GROW_S
    assert watch.next_budget(75) == 87


def test_what_this_computer_leaves() -> None:
    reading = read_memory()
    assert 0 < reading.allowed <= 2 * reading.total
    assert MemoryWatch().allowed() > 0
