"""Which units stay in memory, of a model that is scanned in the same order for every token.

For such a scan any cache that evicts what was used longest ago hits nothing, whatever its size. So
a fixed share stays (is pinned), spread evenly, and the rest streams through a ring of slots.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterator

from flashllm.errors import OutOfBudget

READ_BYTES = 2 << 20
"""What one read of a scan brings, about. See docs/measurements.md, "Streaming"."""

AHEAD_BYTES = 64 << 20
"""The most that is read ahead of the stage in use, and never more than two stages."""

LEAST_AHEAD_BYTES = 8 << 20
"""The least, or a quarter of the largest stage: with none the disk waits for every stage. A 7B in
q4 took 1.10 times as long then, and with 60 MB more no less than with these."""

LOOKUP_SLOTS = 16
"""Units of a table of rows that are kept at least: as many rows as are looked up at once."""

SPARSE_ROWS = 8
"""Tokens that a step of single units of rare stages takes at most: what more of them use together
is nearly everything."""

_STEPS = 1 << 12  # of what is streamed of a stage


@dataclasses.dataclass(frozen=True)
class Extent:
    """Consecutive units of a group, read at once: `nbytes` of its file, padding included."""

    group: str
    first: int
    count: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Span:
    """Consecutive units of a group that are used together, from unit `first` on.

    offsets [units + 1]: where each begins and the last one ends, in bytes of the group's file.
    """

    group: str
    first: int
    offsets: tuple[int, ...]

    @property
    def units(self) -> int:
        """How many units."""
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of all of them, padding included."""
        return self.bytes_of(0, self.units)

    @property
    def largest(self) -> int:
        """Bytes of the largest unit."""
        return max(end - begin for begin, end in itertools.pairwise(self.offsets))

    def bytes_of(self, begin: int, end: int) -> int:
        """Bytes of units begin .. end-1, counted from the span's first."""
        return self.offsets[end] - self.offsets[begin]

    def extents(self, begin: int, end: int) -> Iterator[Extent]:
        """Units begin .. end-1 in reads of about READ_BYTES, each of about as many units."""
        units = end - begin
        reads = min(units, -(-self.bytes_of(begin, end) // READ_BYTES))
        for i in range(reads):
            low, high = begin + units * i // reads, begin + units * (i + 1) // reads
            yield Extent(self.group, self.first + low, high - low, self.bytes_of(low, high))


Stage = tuple[Span, ...]
"""What a step needs at once."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """A model as it is used: stages in their order for every token, and tables of single rows.

    A table may hold the same units as stages do (a head that is also the embedding). rare: stages
    that only prompts need whole; other steps use single units of them, as they come.
    """

    stages: tuple[Stage, ...]
    tables: tuple[Span, ...]
    rare: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of all units, each counted once."""
        return sum(span.nbytes for span in self.spans) + sum(t.nbytes for t in self.lone_tables)

    @property
    def spans(self) -> list[Span]:
        """The spans of all stages, in order."""
        return [span for stage in self.stages for span in stage]

    @property
    def rare_groups(self) -> dict[str, int]:
        """The groups of the rare stages, in order, and the bytes of each in slots of its largest
        unit: the last one may be smaller.
        """
        found: dict[str, int] = {}
        for stage in sorted(self.rare):
            for span in self.stages[stage]:
                found[span.group] = found.get(span.group, 0) + span.units * span.largest
        return found

    @property
    def lone_tables(self) -> list[Span]:
        """The tables whose units are in no stage."""
        scanned = {span.group for span in self.spans}
        return [table for table in self.tables if table.group not in scanned]


@dataclasses.dataclass(frozen=True)
class Residency:
    """Which units of a scan stay, and the memory through which the others pass.

    pinned[stage][span]: how many units of the span stay, its first ones. all_rows: whether the
    tables that are in no stage stay whole. slots of slot_bytes each take an extent; table_slots a
    unit of each table. window_bytes: room for units of rare stages that were used of late, 0 if all
    of those stay.
    """

    scan: Scan
    pinned: tuple[tuple[int, ...], ...]
    all_rows: bool
    slots: int
    slot_bytes: int
    table_slots: int
    window_bytes: int = 0

    @property
    def streams(self) -> bool:
        """Whether any unit does not stay."""
        return self.slots > 0 or self.table_slots > 0

    @property
    def pinned_bytes(self) -> int:
        """Bytes of units that stay."""
        return sum(span.bytes_of(0, count) for span, count in self.kept())

    @property
    def passing_bytes(self) -> int:
        """Bytes of memory for units that do not stay."""
        tables = sum(table.largest for table in self.scan.tables)
        return self.slots * self.slot_bytes + self.table_slots * tables + self.window_bytes

    @property
    def nbytes(self) -> int:
        """Bytes of memory for weights."""
        return self.pinned_bytes + self.passing_bytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes read from flash for every token: for a pass over the stages that are not rare."""
        return sum(
            span.bytes_of(count, span.units)
            for i, (stage, counts) in enumerate(zip(self.scan.stages, self.pinned, strict=True))
            if i not in self.scan.rare
            for span, count in zip(stage, counts, strict=True)
        )

    def kept(self) -> Iterator[tuple[Span, int]]:
        """Each span, of the stages in order and then of the lone tables, with how many stay."""
        yield from zip(self.scan.spans, itertools.chain(*self.pinned), strict=True)
        for table in self.scan.lone_tables:
            yield table, table.units if self.all_rows else 0

    def extents(self, stage: int) -> list[Extent]:
        """The reads that bring what of a stage does not stay."""
        spans = zip(self.scan.stages[stage], self.pinned[stage], strict=True)
        return [extent for span, count in spans for extent in span.extents(count, span.units)]


def pinned_scan(scan: Scan, room: int | None) -> Residency:
    """The residency that keeps as much as fits `room` bytes, spread evenly; None: everything.

    Raises OutOfBudget if it is less than smallest_room(scan).
    """
    everything = Residency(scan, _all(scan), True, 0, 0, 0)
    if room is None or everything.nbytes <= room:
        return everything
    if room < (least := smallest_room(scan)):
        raise OutOfBudget(f"{least} bytes are needed to stream this model's weights, not {room}")
    window = _least_window(scan)
    room -= window
    low, high = 0, _STEPS  # as little streamed of a stage as fits
    widest = _widest_stage(scan)
    while low < high:
        middle = (low + high) // 2
        if _streaming(scan, widest * middle // _STEPS, AHEAD_BYTES).nbytes <= room:
            high = middle
        else:
            low = middle + 1
    found = _streaming(scan, widest * low // _STEPS, AHEAD_BYTES)
    if found.nbytes > room:  # too little to read far ahead
        found = _least(scan)
        spare = (room - found.nbytes) // found.slot_bytes
        found = dataclasses.replace(found, slots=found.slots + spare)
    if window:
        most = sum(scan.rare_groups.values())
        window = min(most, window + max(0, room - found.nbytes))
        return dataclasses.replace(found, window_bytes=window)
    if not found.slots:  # only rows are looked up: keep more of them
        spare = (room - found.nbytes) // sum(table.largest for table in scan.tables)
        found = dataclasses.replace(found, table_slots=found.table_slots + spare)
    return found


def smallest_room(scan: Scan) -> int:
    """The least memory for weights with which the scan works: about one stage, what is read ahead
    meanwhile, and some rows.
    """
    return _least(scan).nbytes + _least_window(scan)


def _least_window(scan: Scan) -> int:
    """The least room for units of rare stages: a token may use any of a group's, all of them."""
    return max(scan.rare_groups.values(), default=0)


def _least(scan: Scan) -> Residency:
    """The residency that takes the least memory."""
    largest = max(_nbytes(stage) for stage in scan.stages)
    streamed = (_usual_stage(scan), largest)
    ahead = min(LEAST_AHEAD_BYTES, largest // 4)
    found = (_streaming(scan, most, ahead) for most in streamed)
    return min(found, key=lambda residency: residency.nbytes)


def _streaming(scan: Scan, most: int, ahead: int) -> Residency:
    """The residency that streams `most` bytes of every stage and reads `ahead` bytes ahead."""
    found = Residency(scan, _kept(scan, most), False, 0, 0, LOOKUP_SLOTS)
    reads = [found.extents(stage) for stage in range(len(scan.stages))]
    slot_bytes = max((extent.nbytes for extents in reads for extent in extents), default=0)
    if not slot_bytes:
        return found
    counts = [len(extents) for extents in reads]
    following = [*counts[1:], *counts]
    beyond = max(following[i] + following[i + 1] for i in range(len(counts)))
    return dataclasses.replace(
        found,
        slots=max(counts) + min(beyond, -(-ahead // slot_bytes)),
        slot_bytes=slot_bytes,
    )


def _all(scan: Scan) -> tuple[tuple[int, ...], ...]:
    """How many units each span has."""
    return tuple(tuple(span.units for span in stage) for stage in scan.stages)


def _kept(scan: Scan, most: int) -> tuple[tuple[int, ...], ...]:
    """How many units of each span stay, if `most` bytes of every stage are streamed.

    The same amount of every stage, because the ring must hold what is streamed of any: of a head
    larger than the layers, more stays. Of rare stages nothing does. What rounding to whole units
    streams less is made up for in the stages that follow.
    """
    behind = 0.0  # bytes that should have been streamed, and are not
    counts = []
    for i, stage in enumerate(scan.stages):
        if i in scan.rare:
            counts.append((0,) * len(stage))
            continue
        size = _nbytes(stage)
        share = min(1.0, most / size)
        row = []
        for span in stage:
            wanted = share * span.nbytes + behind
            end = span.offsets[-1]
            count = min(span.units, bisect.bisect_left(span.offsets, end - wanted))
            row.append(count)
            behind = wanted - span.bytes_of(count, span.units)
        counts.append(tuple(row))
    return tuple(counts)


def _usual_stage(scan: Scan) -> int:
    """Bytes of a stage such as most are: of a layer."""
    return sorted(_nbytes(stage) for stage in scan.stages)[len(scan.stages) // 2]


def _widest_stage(scan: Scan) -> int:
    """Bytes of the largest stage of which a part may stay."""
    usual = (stage for i, stage in enumerate(scan.stages) if i not in scan.rare)
    return max(map(_nbytes, usual))


def _nbytes(stage: Stage) -> int:
    return sum(span.nbytes for span in stage)
