"""How fast this computer gives weights back, from its disk and from its memory, as measured."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flashllm.disk_curve import DiskCurve
from flashllm.errors import InvalidInput

_MOST_RATES = 64
_MOST_THREADS = 1 << 16


@dataclasses.dataclass(frozen=True, order=True)
class MemoryRate:
    """Bytes per second of reading memory with so many threads."""

    threads: int
    bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class ReadSpeed:
    """What was measured: the disk's curve, None if it could not be, and the memory's rates."""

    disk: DiskCurve | None
    memory: tuple[MemoryRate, ...]

    def __post_init__(self) -> None:
        """Raises InvalidInput if a number makes no sense."""
        if not 0 < len(self.memory) <= _MOST_RATES:
            raise InvalidInput(f"{len(self.memory)} read rates of memory")
        for rate in self.memory:
            if not (1 <= rate.threads <= _MOST_THREADS and 0 < rate.bytes_per_s < math.inf):
                raise InvalidInput(f"an impossible read rate of memory: {rate}")

    def memory_rate(self, threads: int) -> float:
        """Bytes per second of reading memory with `threads` threads.

        Between numbers of threads that were measured it is interpolated; beyond the most, it is
        the rate of the most.
        """
        fewer = max((r for r in self.memory if r.threads <= threads), default=min(self.memory))
        more = min((r for r in self.memory if r.threads >= threads), default=max(self.memory))
        if more.threads <= fewer.threads:
            return fewer.bytes_per_s
        across = (threads - fewer.threads) / (more.threads - fewer.threads)
        return fewer.bytes_per_s + across * (more.bytes_per_s - fewer.bytes_per_s)

    def to_json(self) -> dict[str, Any]:
        """The object that from_json reads."""
        memory = [dataclasses.asdict(rate) for rate in sorted(self.memory)]
        return {"disk": self.disk and self.disk.to_json(), "memory": memory}

    @classmethod
    def from_json(cls, data: object) -> ReadSpeed:
        """What a JSON value of any origin says. Raises InvalidInput if it is nothing like it."""
        match data:
            case {"disk": disk, "memory": list(memory)}:
                curve = None if disk is None else DiskCurve.from_json(disk)
                return cls(curve, tuple(_memory_rate(rate) for rate in memory))
        raise InvalidInput("read speeds are not an object with 'disk' and 'memory'")


def _memory_rate(data: object) -> MemoryRate:
    match data:
        case {"threads": int(threads), "bytes_per_s": float(rate) | int(rate)}:
            try:
                return MemoryRate(threads, float(rate))
            except OverflowError:
                pass
    raise InvalidInput("a read rate of memory lacks threads or bytes_per_s")
