"""Scattered reads shared out to threads: cut where they should be, whole or told of."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import plain_units
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_units import UnreliableReader

from flashllm.errors import EngineError, InvalidInput, ModelIOError
from flashllm.flash import scatter
from flashllm.flash.scatter import ScatteredReader, cut_runs

UNITS, PAGE = 40, 4096


@pytest.fixture
def unreliable(tmp_path: Path) -> UnreliableReader:
    folder = plain_units.write(tmp_path / "model", 1, UNITS)
    return UnreliableReader(plain_units.read(folder, 1, UNITS))


def slow_bounds(begins: list[int], ends: list[int], gap: int, threads: int) -> list[int]:
    """The twin: one extent after another."""
    runs: list[list[int]] = []
    for i in range(len(begins)):
        if not runs or begins[i] - ends[i - 1] > gap:
            runs.append([])
        runs[-1].append(i)
    total = sum(ends[run[-1]] - begins[run[0]] for run in runs)
    share = min(max(total // threads, scatter.LEAST_SHARE), scatter.MOST_SHARE)
    if all(ends[run[-1]] - begins[run[0]] <= share for run in runs):
        return [*(run[0] for run in runs), len(begins)]
    bounds = []
    for run in runs:
        piece = -1
        for i in run:
            of = (ends[i] - 1 - begins[run[0]]) // share
            if of != piece:
                bounds.append(i)
            piece = of
    return [*bounds, len(begins)]


@given(
    st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 2, 9]), st.integers(1, 3)), max_size=200),
    st.sampled_from([0, 2, 5]),
    st.sampled_from([1, 16]),
    st.sampled_from([100, 4096, 32 << 10]),
)
def test_runs_against_a_loop(
    extents: list[tuple[int, int]], gap: int, threads: int, unit: int
) -> None:
    at, begins, ends = 0, list[int](), list[int]()
    for hole, size in extents:
        begins.append(at + hole * unit)
        ends.append(begins[-1] + size * unit)
        at = ends[-1]
    made = cut_runs(np.array(begins, np.int64), np.array(ends, np.int64), gap * unit, threads)
    assert made.tolist() == (slow_bounds(begins, ends, gap * unit, threads) if begins else [0])


def test_one_long_run_is_shared_out() -> None:
    begins = np.arange(1600) * (16 << 10)
    bounds = cut_runs(begins, begins + (16 << 10), 0, 16)
    sizes = np.diff(bounds) * (16 << 10)
    assert len(sizes) >= 16
    assert sizes.max() <= scatter.MOST_SHARE
    assert sizes[:-1].min() >= scatter.LEAST_SHARE


def test_failures_are_told_in_order_and_others_complete(unreliable: UnreliableReader) -> None:
    group = unreliable.model.group("l0")
    units = np.arange(0, UNITS, 2)
    memory = np.zeros(len(units) * PAGE, np.uint8)
    places = np.arange(len(units)) * PAGE
    with unreliable, ScatteredReader(unreliable, 5) as reader:
        unreliable.broken = {("l0", 30), ("l0", 4)}
        read = reader.start(group, units, memory.data, places, 0)
        for _ in range(2):
            failures = read.join()
            assert (read.reads, read.nbytes) == (20, 20 * PAGE)
            assert [(begin, end) for begin, end, _ in failures] == [(2, 3), (15, 16)]
            assert all(isinstance(error, ModelIOError) for _, _, error in failures)
        for unit, place in zip(units.tolist(), places.tolist(), strict=True):
            there = plain_units.unit_bytes(unreliable.model, group, unit)
            good = memory[place : place + len(there)].tobytes() == there
            assert good == (unit not in (4, 30))


def test_what_cannot_even_be_planned_fails_whole(unreliable: UnreliableReader) -> None:
    memory = np.zeros(3 * PAGE, np.uint8)
    with unreliable, ScatteredReader(unreliable, 4) as reader:
        units, places = np.array([1, 2, UNITS + 7]), np.arange(3) * PAGE
        read = reader.start(unreliable.model.group("l0"), units, memory.data, places, 0)
        ((begin, end, error),) = read.join()
    assert (begin, end, read.reads) == (0, 3, 0)
    assert isinstance(error, IndexError)


def test_several_at_once(unreliable: UnreliableReader) -> None:
    group = unreliable.model.group("l0")
    memory = np.zeros(UNITS * PAGE, np.uint8)
    with unreliable, ScatteredReader(unreliable, 4) as reader:
        unreliable.gate.clear()
        reads = []
        for first in range(4):
            units = np.arange(first, UNITS, 4)
            reads.append(reader.start(group, units, memory.data, units * PAGE, 0))
        unreliable.gate.set()
        assert not any(read.join() for read in reads)
    for unit in range(UNITS):
        there = plain_units.unit_bytes(unreliable.model, group, unit)
        assert memory[unit * PAGE :][: len(there)].tobytes() == there


def test_closing_finishes_what_has_begun(unreliable: UnreliableReader) -> None:
    group, memory = unreliable.model.group("l0"), np.zeros(UNITS * PAGE, np.uint8)
    units = np.arange(0, UNITS, 3)
    with unreliable:
        reader = ScatteredReader(unreliable, 2)
        unreliable.gate.clear()
        read = reader.start(group, units, memory.data, units * PAGE, 0)
        threading.Timer(0.05, unreliable.gate.set).start()
        reader.close()
        reader.close()
        assert not read.join()
        assert len(unreliable.asked) == len(units)
        with pytest.raises(EngineError, match="reading has ended"):
            reader.start(group, units, memory.data, units * PAGE, 0)
        with pytest.raises(InvalidInput, match="0 threads"):
            ScatteredReader(unreliable, 0)
