"""When reading over a hole is cheaper than another read."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.cache.read_cost import DEFAULT_GAP, LARGEST_GAP, READERS, read_gap
from flashllm.disk_curve import DiskCurve, Point

NOW = datetime.datetime.now(datetime.UTC)
BLOCKS = [16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20]


def curve(rates: dict[int, float], io: str = "direct", at_once: int = READERS) -> DiskCurve:
    return DiskCurve(NOW, tuple(Point(io, block, at_once, r) for block, r in rates.items()))


def line(begin: float, per_byte: float) -> DiskCurve:
    """A disk whose reads take begin + per_byte * bytes seconds."""
    return curve({block: block / (begin + per_byte * block) for block in BLOCKS})


@pytest.mark.parametrize("gap", [0, 4096, 20 << 10, 100 << 10])
def test_a_disk_that_follows_the_line(gap: int) -> None:
    per_byte = 1 / 2.5e9
    assert read_gap(line((gap + 100) * per_byte, per_byte)) == gap


def test_the_default_is_what_its_words_say() -> None:
    stated = curve({16 << 10: 0.7e9, 1 << 20: 2.8e9})
    assert abs(read_gap(stated) - DEFAULT_GAP) <= 8 << 10


def test_what_was_not_measured() -> None:
    one_size = curve({1 << 20: 1e9})
    buffered = curve(dict.fromkeys(BLOCKS, 1e9), io="pread")
    assert [read_gap(c) for c in (None, one_size, buffered)] == [DEFAULT_GAP] * 3


def test_the_ends() -> None:
    seek = line(0.01, 1 / 1e8)
    assert read_gap(seek) == LARGEST_GAP
    slower_when_larger = curve({block: 1e14 / block for block in BLOCKS})
    assert read_gap(slower_when_larger) == 0
    assert read_gap(curve({block: float(block) ** 2 for block in BLOCKS})) == LARGEST_GAP


@given(st.lists(st.floats(1e-300, 1e300), min_size=5, max_size=5))
def test_any_curve_gives_a_gap_within_bounds(rates: list[float]) -> None:
    gap = read_gap(curve(dict(zip(BLOCKS, rates, strict=True))))
    assert 0 <= gap <= LARGEST_GAP
    assert gap % 4096 == 0
