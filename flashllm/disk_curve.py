"""How fast a disk gives bytes back: measured rates by mode, block size and reads at once."""

from __future__ import annotations

import bisect
import dataclasses
import datetime
import itertools
import math
from typing import Any

from flashllm.errors import InvalidInput
from flashllm.sizes import format_size

_MOST_POINTS = 1000
_LARGEST_BLOCK = 1 << 40
_MOST_AT_ONCE = 1 << 20


@dataclasses.dataclass(frozen=True, order=True)
class Point:
    """Bytes per second of random reads of so many bytes, so many at once, in mode `io`."""

    io: str
    block_bytes: int
    at_once: int
    bytes_per_s: float


@dataclasses.dataclass(frozen=True)
class DiskCurve:
    """The points measured on one disk, for each mode a whole grid of sizes and reads at once.

    measured: when, with a time zone.
    """

    measured: datetime.datetime
    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        """Raises InvalidInput if a number makes no sense, or a grid has holes."""
        if self.measured.tzinfo is None:
            raise InvalidInput("a disk's curve has a time of measurement without a time zone")
        if not 0 < len(self.points) <= _MOST_POINTS:
            raise InvalidInput(f"a disk's curve has {len(self.points)} points")
        for point in self.points:
            possible = 1 <= point.block_bytes <= _LARGEST_BLOCK
            possible &= 1 <= point.at_once <= _MOST_AT_ONCE
            if not (possible and 0 < point.bytes_per_s < math.inf):
                raise InvalidInput(f"a disk's curve has an impossible point: {point}")
        for io in self.modes:
            places = [(point.block_bytes, point.at_once) for point in self._of(io)]
            blocks, at_once = self.blocks(io), self.at_once(io)
            if sorted(places) != list(itertools.product(blocks, at_once)):
                raise InvalidInput(f"a disk's curve has holes or doubles in mode {io!r}")

    @property
    def modes(self) -> list[str]:
        """The modes measured."""
        return sorted({point.io for point in self.points})

    def blocks(self, io: str) -> list[int]:
        """The block sizes measured in mode `io`, rising, in bytes."""
        return sorted({point.block_bytes for point in self._of(io)})

    def at_once(self, io: str) -> list[int]:
        """The numbers of reads at once measured in mode `io`, rising."""
        return sorted({point.at_once for point in self._of(io)})

    def rate(self, block_bytes: int, at_once: int, io: str = "direct") -> float:
        """Bytes per second of reads of `block_bytes`, `at_once` at a time.

        Between points it is interpolated linearly in the logarithms of all three. Beyond the
        largest block, or the fewest or most reads at once, it is the rate measured there; a
        block smaller than the smallest takes that one's time. Raises InvalidInput for a mode that
        was not measured, or a number below 1.
        """
        if io not in self.modes:
            raise InvalidInput(f"mode {io!r} was not measured on this disk, only {self.modes}")
        if block_bytes < 1 or at_once < 1:
            raise InvalidInput(f"{at_once} reads of {block_bytes} bytes at once")
        known = {(p.block_bytes, p.at_once): math.log(p.bytes_per_s) for p in self._of(io)}
        blocks, counts = self.blocks(io), self.at_once(io)
        low, high, across = _between(blocks, block_bytes)
        few, many, along = _between(counts, at_once)
        smaller = (1 - along) * known[low, few] + along * known[low, many]
        larger = (1 - along) * known[high, few] + along * known[high, many]
        rate = math.exp((1 - across) * smaller + across * larger)
        return rate * min(1.0, block_bytes / blocks[0])

    def age(self, now: datetime.datetime) -> str:
        """How long ago it was measured, for human eyes."""
        seconds = max(0.0, (now - self.measured).total_seconds())
        for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
            if (count := int(seconds // length)) >= 1:
                return f"{count} {unit}{'s' if count > 1 else ''} ago"
        return "just now"

    def table(self, io: str) -> list[str]:
        """The rates of mode `io` for human eyes: a line of reads at once, then one a block size."""
        counts = self.at_once(io)
        lines = [f"{io:<10}" + "".join(f"{count:>10}" for count in counts) + "  reads at once"]
        for block in self.blocks(io):
            rates = [format_size(self.rate(block, count, io)) + "/s" for count in counts]
            lines.append(f"{_binary(block):>10}" + "".join(f"{rate:>10}" for rate in rates))
        return lines

    def to_json(self) -> dict[str, Any]:
        """The curve as a JSON object, which from_json reads."""
        points = [dataclasses.asdict(point) for point in sorted(self.points)]
        return {"measured": self.measured.isoformat(timespec="seconds"), "points": points}

    @classmethod
    def from_json(cls, data: object) -> DiskCurve:
        """The curve in a JSON value of any origin. Raises InvalidInput if it is not one."""
        match data:
            case {"measured": str(when), "points": list(points)}:
                try:
                    measured = datetime.datetime.fromisoformat(when)
                except ValueError:
                    raise InvalidInput(f"a disk's curve was measured at {when!r}") from None
                return cls(measured, tuple(_point(point) for point in points))
        raise InvalidInput("a disk's curve is not an object with 'measured' and 'points'")

    def _of(self, io: str) -> list[Point]:
        return [point for point in self.points if point.io == io]


def _point(data: object) -> Point:
    match data:
        case {
            "io": str(io),
            "block_bytes": int(block),
            "at_once": int(at_once),
            "bytes_per_s": float(rate) | int(rate),
        }:
            try:
                return Point(io, block, at_once, float(rate))
            except OverflowError:
                pass
    raise InvalidInput("a disk's curve has a point without io, block_bytes, at_once, bytes_per_s")


def _between(grid: list[int], value: int) -> tuple[int, int, float]:
    """The grid's neighbours of `value`, and how far it is from the first to the second, 0 to 1."""
    at = bisect.bisect_left(grid, value)
    if at == 0 or at == len(grid):
        end = grid[min(at, len(grid) - 1)]
        return end, end, 0.0
    low, high = grid[at - 1], grid[at]
    return low, high, math.log(value / low) / math.log(high / low)


def _binary(count: int) -> str:
    """A block size in powers of 1024, as disks and pages have it."""
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"
