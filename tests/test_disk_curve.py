"""A disk's curve: exact where measured, between its neighbours elsewhere, and safe to read."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import InvalidInput

NOON = datetime.datetime(2025, 6, 1, 12, tzinfo=datetime.UTC)
BLOCKS = (16 << 10, 64 << 10, 1 << 20)
COUNTS = (1, 4, 16)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["measured", "points", "io", "block_bytes", "at_once", "bytes_per_s"]),
            inner,
        )
    ),
    max_leaves=12,
)


def curve(**rates: list[float]) -> DiskCurve:
    """A curve with the rates of each mode, by block size and then by reads at once."""
    points = [
        Point(io, block, count, rate)
        for io, values in rates.items()
        for (block, count), rate in zip(itertools.product(BLOCKS, COUNTS), values, strict=True)
    ]
    return DiskCurve(NOON, tuple(points))


RISING = curve(direct=[1e7, 3e7, 8e7, 4e7, 1.1e8, 2.5e8, 3e8, 1e9, 1.1e9])
POWERS = curve(direct=[1e3 * block**0.5 * n**0.25 for block in BLOCKS for n in COUNTS])


def test_measured_points_are_exact() -> None:
    for point in RISING.points:
        got = RISING.rate(point.block_bytes, point.at_once)
        assert got == pytest.approx(point.bytes_per_s, rel=1e-12)


@given(st.integers(BLOCKS[0], BLOCKS[-1]), st.integers(1, 16))
def test_a_power_law_is_interpolated_exactly(block: int, count: int) -> None:
    assert POWERS.rate(block, count) == pytest.approx(1e3 * block**0.5 * count**0.25, rel=1e-9)


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 30), st.integers(1, 1 << 20))
def test_a_rising_curve_rises_everywhere(block: int, count: int, step: int) -> None:
    rate = RISING.rate(block, count)
    assert 0 < rate <= 1.1e9 * (1 + 1e-9)
    assert RISING.rate(block + step, count) >= rate * (1 - 1e-9)
    assert RISING.rate(block, count + step) >= rate * (1 - 1e-9)


def test_beyond_the_grid() -> None:
    assert RISING.rate(1 << 30, 16) == pytest.approx(1.1e9)
    assert RISING.rate(16 << 10, 1000) == pytest.approx(8e7)
    assert RISING.rate(4 << 10, 1) == pytest.approx(1e7 / 4)  # as long as 16 KiB


def test_modes_are_apart() -> None:
    both = curve(direct=[1e9] * 9, pread=[5e8] * 9)
    assert both.modes == ["direct", "pread"]
    assert both.rate(1 << 20, 4, "pread") == pytest.approx(5e8)
    for args in ((1 << 20, 4, "mmap"), (0, 1, "direct"), (1, 0, "direct")):
        with pytest.raises(InvalidInput):
            both.rate(*args)


def test_json_and_back() -> None:
    data = json.loads(json.dumps(RISING.to_json()))
    assert DiskCurve.from_json(data) == RISING


def test_curves_that_cannot_be() -> None:
    points = RISING.points
    bad_values = [
        dataclasses.replace(points[0], bytes_per_s=value) for value in (0.0, -1.0, float("nan"))
    ]
    for wrong in ((), points[1:], (*points, points[0]), *((p, *points[1:]) for p in bad_values)):
        with pytest.raises(InvalidInput):
            DiskCurve(NOON, wrong)
    with pytest.raises(InvalidInput, match="time zone"):
        DiskCurve(NOON.replace(tzinfo=None), points)
    damaged = RISING.to_json() | {"measured": "yesterday"}
    with pytest.raises(InvalidInput, match="yesterday"):
        DiskCurve.from_json(damaged)
    huge = {"io": "direct", "block_bytes": 1, "at_once": 1, "bytes_per_s": 10**400}
    with pytest.raises(InvalidInput):
        DiskCurve.from_json(RISING.to_json() | {"points": [huge]})


@given(JSON, st.booleans())
def test_any_json_is_a_curve_or_an_error(value: object, dated: bool) -> None:
    data = {"measured": NOON.isoformat(), "points": [value]} if dated else value
    try:
        found = DiskCurve.from_json(data)
    except InvalidInput:
        return
    assert found.rate(1 << 20, 4, found.modes[0]) > 0


@pytest.mark.parametrize(
    ("later", "words"),
    [
        ({"seconds": 20}, "just now"),
        ({"seconds": -20}, "just now"),
        ({"seconds": 60}, "1 minute ago"),
        ({"hours": 5}, "5 hours ago"),
        ({"days": 3, "hours": 5}, "3 days ago"),
    ],
)
def test_its_age(later: dict[str, float], words: str) -> None:
    assert RISING.age(NOON + datetime.timedelta(**later)) == words


def test_the_table_holds_every_rate() -> None:
    first, *rows = RISING.table("direct")
    assert first.split() == ["direct", "1", "4", "16", "reads", "at", "once"]
    assert rows[0].split() == ["16", "KiB", "10", "MB/s", "30", "MB/s", "80", "MB/s"]
    assert rows[2].split() == ["1", "MiB", "300", "MB/s", "1", "GB/s", "1.1", "GB/s"]
    assert len({len(row) for row in rows}) == 1
