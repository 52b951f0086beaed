"""Units that were asked for one by one: where they are, once they have come."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.neurons import Arrival


class Brought(Protocol):
    """Units of a group that are wanted: addresses int64, 0 of those still on their way.

    wait() returns when all are there; raises CorruptModel, ModelIOError.
    """

    @property
    def addresses(self) -> NDArray[np.int64]: ...
    def wait(self) -> None: ...


@dataclasses.dataclass(frozen=True, eq=False)
class InPlace:
    """Units that are in memory already."""

    addresses: NDArray[np.int64]

    def wait(self) -> None:
        """Nothing is on its way."""


@dataclasses.dataclass(frozen=True, eq=False)
class Coming:
    """Units of which some may be on their way; how long it is waited for them is counted."""

    arrival: Arrival
    count_wait: Callable[[float], None]

    @property
    def addresses(self) -> NDArray[np.int64]:
        return self.arrival.addresses

    def wait(self) -> None:
        start = time.perf_counter()
        try:
            self.arrival.wait()
        finally:
            self.count_wait(time.perf_counter() - start)
