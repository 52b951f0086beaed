"""Following what other programs leave: when this process should use less memory, and when more."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from flashllm import machine

LOOK_S = 1.0
"""Seconds from one look at the system's memory to the next: a look takes about a millisecond."""

GROW_S = 30.0
"""Seconds that must pass after a change before more is used: growing reads and copies weights."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """Bytes that this process may use now, and of the machine or container in all."""

    allowed: int
    total: int


def read_memory() -> Reading:
    """What the system leaves to this process."""
    memory = machine.memory()
    allowed = machine.auto_budget(memory, machine.private_rss())
    return Reading(allowed, min(memory.total, memory.cgroup_limit or memory.total))


def next_budget(committed: int, reading: Reading, since_s: float) -> int | None:
    """The budget to change to, in bytes; None to leave it as it is.

    committed: what the process takes once all its buffers are full. since_s: seconds since the last
    change.

    What is allowed leaves a reserve free. Once more than 1 % of all memory is missing from it, as
    much is given back as is missing: less than that comes and goes with any program. Only when 5 %
    more than the reserve are free is half of that taken, so that neither step calls for the other.
    """
    room = reading.allowed - committed
    if room < -(reading.total // 100):
        return reading.allowed
    if room > reading.total // 20 and since_s >= GROW_S:
        return committed + room // 2
    return None


class MemoryWatch:
    """Looks at the system's memory now and then, when asked to. Only one thread may ask."""

    def __init__(
        self,
        read: Callable[[], Reading] = read_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._looked = self._changed = clock()

    def due(self) -> bool:
        """Whether it is time to look; True once for each LOOK_S."""
        if self._clock() < self._looked + LOOK_S:
            return False
        self._looked = self._clock()
        return True

    def allowed(self) -> int:
        """Bytes that this process may use now."""
        return self._read().allowed

    def next_budget(self, committed: int) -> int | None:
        """What next_budget says now."""
        return next_budget(committed, self._read(), self._clock() - self._changed)

    def changed(self) -> None:
        """Note that what is used has changed."""
        self._changed = self._clock()
