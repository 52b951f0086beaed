"""Which units stay: the invariants of any scan and any room, and the sizes of real shapes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.cache.policy import (
    LOOKUP_SLOTS,
    READ_BYTES,
    Residency,
    Scan,
    Span,
    pinned_scan,
    smallest_room,
)
from flashllm.errors import OutOfBudget

PAGE = 4096


@pytest.fixture(autouse=True)
def _small_reads() -> None:
    """Not here: the sizes are those of real models."""


@st.composite
def spans(draw: st.DrawFn, group: str) -> Span:
    """Units of a group, nearly equal as real ones are, or of any sizes."""
    count = draw(st.integers(1, 40))
    size = draw(st.integers(1, 120))
    if draw(st.booleans()):
        pages = [size] * (count - 1) + [draw(st.integers(1, size))]
    else:
        pages = draw(st.lists(st.integers(1, 120), min_size=count, max_size=count))
    offsets = [0, *itertools.accumulate(PAGE * n for n in pages)]
    return Span(group, 0, tuple(offsets))


@st.composite
def scans(draw: st.DrawFn) -> Scan:
    """Layers of two groups, then a head in pieces, tied to the embedding or not."""
    layers = [
        (draw(spans(f"layers.{i}.attn")), draw(spans(f"layers.{i}.ffn")))
        for i in range(draw(st.integers(1, 6)))
    ]
    tied = draw(st.booleans())
    head = draw(spans("embed" if tied else "output"))
    cut = draw(st.integers(0, head.units - 1))
    ends = sorted({0, cut, head.units})
    pieces = [
        (Span(head.group, low, head.offsets[low : high + 1]),)
        for low, high in itertools.pairwise(ends)
    ]
    return Scan((*layers, *pieces), (head if tied else draw(spans("embed")),))


def rooms(scan: Scan) -> st.SearchStrategy[int]:
    return st.integers(smallest_room(scan), max(smallest_room(scan), scan.nbytes))


def check(found: Residency, scan: Scan, room: int) -> None:
    """What must hold of any residency."""
    assert found.nbytes <= room
    assert found.nbytes == found.pinned_bytes + found.passing_bytes
    for stage, counts in zip(scan.stages, found.pinned, strict=True):
        assert all(0 <= count <= span.units for span, count in zip(stage, counts, strict=True))
    extents = [found.extents(i) for i in range(len(scan.stages))]
    # The ring has room for all of any stage at once, and each slot for any read.
    assert found.slots >= max(len(reads) for reads in extents)
    assert all(extent.nbytes <= found.slot_bytes for reads in extents for extent in reads)
    assert sum(e.nbytes for reads in extents for e in reads) == found.streamed_bytes
    for stage, counts, reads in zip(scan.stages, found.pinned, extents, strict=True):
        expected = [
            (span.group, span.first + i)
            for span, count in zip(stage, counts, strict=True)
            for i in range(count, span.units)
        ]
        seen = [(e.group, e.first + i) for e in reads for i in range(e.count)]
        assert seen == expected  # each unit that does not stay, once, in order
    if found.streams:
        assert found.table_slots >= LOOKUP_SLOTS


@given(st.data())
def test_any_room_is_kept_to(data: st.DataObject) -> None:
    scan = data.draw(scans())
    room = data.draw(rooms(scan))
    check(pinned_scan(scan, room), scan, room)


@given(scans())
def test_the_floor_works_and_less_does_not(scan: Scan) -> None:
    least = smallest_room(scan)
    check(pinned_scan(scan, least), scan, least)
    if least <= scan.nbytes:
        with pytest.raises(OutOfBudget):
            pinned_scan(scan, least - 1)


@given(scans())
def test_everything_stays_exactly_where_it_fits(scan: Scan) -> None:
    whole = pinned_scan(scan, scan.nbytes)
    assert whole == pinned_scan(scan, None)
    assert not whole.streams
    assert whole.pinned_bytes == whole.nbytes == scan.nbytes
    assert whole.streamed_bytes == whole.passing_bytes == 0
    if scan.nbytes - 1 >= smallest_room(scan):
        assert pinned_scan(scan, scan.nbytes - 1).streams


@settings(max_examples=60)
@given(st.data())
def test_more_room_never_reads_more(data: st.DataObject) -> None:
    """But for what rounding to whole units and whole reads moves."""
    scan = data.draw(scans())
    low, high = sorted([data.draw(rooms(scan)), data.draw(rooms(scan))])
    slack = sum(span.largest for span in scan.spans)
    less, more = pinned_scan(scan, low), pinned_scan(scan, high)
    assert more.streamed_bytes <= less.streamed_bytes + slack


def seven(unit: int = 160 << 10, layers: int = 32) -> Scan:
    """The sizes of Llama-2-7B in 4 bits."""

    def span(group: str, nbytes: int) -> Span:
        return Span(group, 0, tuple(range(0, nbytes + unit, unit)))

    stages = [(span(f"{i}.attn", 36 << 20), span(f"{i}.ffn", 73 << 20)) for i in range(layers)]
    head = span("output", 74 << 20)
    return Scan((*stages, (head,)), (span("embed", 74 << 20),))


def test_of_a_large_model_little_memory_is_left_and_layers_share_alike() -> None:
    scan = seven()
    for share in (0.2, 0.25, 0.5, 0.75, 0.9):
        room = int(share * scan.nbytes)
        found = pinned_scan(scan, room)
        check(found, scan, room)
        assert room - found.nbytes < 32 << 20  # a unit of each layer, and the ring's
        streamed = [sum(e.nbytes for e in found.extents(i)) for i in range(32)]
        assert max(streamed) - min(streamed) <= 2 * (160 << 10)
        reads = [extent.nbytes for i in range(32) for extent in found.extents(i)]
        assert sum(reads) / len(reads) > READ_BYTES / (1.3 if share < 0.8 else 4)
        assert found.slot_bytes < 1.2 * READ_BYTES


def test_the_floor_of_a_large_model_is_about_a_layer() -> None:
    scan = seven()
    assert 109 << 20 <= smallest_room(scan) < 1.5 * (109 << 20)


def test_memory_rises_one_unit_at_a_time() -> None:
    """Streamed bytes fall with every part of a layer's worth of room added: no plateaus."""
    scan = seven()
    falls = []
    for room in range(700 << 20, 3 << 30, 600 << 20):
        before, after = (pinned_scan(scan, r).streamed_bytes for r in (room, room + (128 << 20)))
        falls.append((before - after) >> 20)
    assert all(112 <= fall <= 144 for fall in falls)
