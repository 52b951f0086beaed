"""What was measured of a computer: between the points, as JSON, and in its file."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm import read_speed_file
from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import InvalidInput
from flashllm.read_speed import MemoryRate, ReadSpeed

NOON = datetime.datetime(2025, 1, 1, 12, tzinfo=datetime.UTC)
CURVE = DiskCurve(NOON, (Point("direct", 1 << 20, 4, 1.25e9),))
SPEED = ReadSpeed(CURVE, (MemoryRate(1, 10e9), MemoryRate(4, 40e9), MemoryRate(2, 30e9)))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["disk", "memory", "threads", "bytes_per_s", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


def test_rates_of_memory() -> None:
    assert [SPEED.memory_rate(n) for n in (1, 2, 3, 4, 64)] == [10e9, 30e9, 35e9, 40e9, 40e9]
    assert ReadSpeed(None, (MemoryRate(4, 5.0),)).memory_rate(1) == 5.0


def test_json_gives_it_back() -> None:
    again = ReadSpeed.from_json(json.loads(json.dumps(SPEED.to_json())))
    assert again == ReadSpeed(CURVE, tuple(sorted(SPEED.memory)))
    unmeasured = ReadSpeed(None, SPEED.memory[:1])
    assert ReadSpeed.from_json(unmeasured.to_json()) == unmeasured


@pytest.mark.parametrize(
    ("threads", "rate"), [(0, 1.0), (1 << 20, 1.0), (1, 0.0), (1, math.nan), (1, math.inf)]
)
def test_impossible_rates_are_refused(threads: int, rate: float) -> None:
    with pytest.raises(InvalidInput):
        ReadSpeed(None, (MemoryRate(threads, rate),))


def test_no_rates_are_refused() -> None:
    for rates in ((), (MemoryRate(1, 1.0),) * 65):
        with pytest.raises(InvalidInput):
            ReadSpeed(None, rates)


@given(JSON)
def test_any_json_is_read_or_refused(data: object) -> None:
    try:
        found = ReadSpeed.from_json(data)
    except InvalidInput:
        return
    assert found.memory_rate(1) > 0


def test_huge_numbers_are_refused() -> None:
    rate = {"threads": 1, "bytes_per_s": 10**400}
    with pytest.raises(InvalidInput):
        ReadSpeed.from_json({"disk": None, "memory": [rate]})


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLLM_CACHE", str(tmp_path / "cache"))
    path = read_speed_file.file_for(tmp_path / "not" / "there" / "yet")
    assert path.parent == tmp_path / "cache" / "speed"
    assert path == read_speed_file.file_for(tmp_path)
    assert read_speed_file.load(path) is None
    assert not path.parent.exists()
    read_speed_file.save(SPEED, path)
    found = read_speed_file.load(path)
    assert found is not None
    assert found.disk == CURVE
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    older = json.dumps(CURVE.to_json()).encode()
    for damaged in (
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b"1" * 5000,
        path.read_bytes()[:-9],
        older,
    ):
        path.write_bytes(damaged)
        assert read_speed_file.load(path) is None
