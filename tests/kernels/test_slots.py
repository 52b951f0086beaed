"""The bookkeeping of a sparse step: what NumPy finds, more slowly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flashllm.kernels import slots as native

subsets = st.lists(st.integers(0, 30), unique=True).map(lambda ids: np.array(sorted(ids), np.int64))


@given(
    arrays.arrays(np.float32, st.integers(0, 100), elements=st.floats(-1, 1, width=32)),
    st.floats(-1, 1, width=32),
)
def test_above(scores: np.ndarray, threshold: float) -> None:
    scores[:: max(1, len(scores) // 3)] = [np.nan]
    ids = np.full(len(scores), -7)
    count = native.above(scores, np.float32(threshold), ids)
    assert ids[:count].tolist() == np.flatnonzero(scores > threshold).tolist()


@given(subsets)
def test_mean_at(ids: np.ndarray) -> None:
    values = np.random.default_rng(3).random(31, np.float32)
    expected = values[ids].mean(dtype=np.float64) if len(ids) else 0
    assert native.mean_at(values, ids) == pytest.approx(expected)


@given(subsets, subsets)
def test_in_common(units: np.ndarray, others: np.ndarray) -> None:
    assert native.in_common(units, others) == len(np.intersect1d(units, others))


@given(st.lists(st.integers(-2, 40)), st.integers(0, 40))
def test_are_ascending(units: list[int], end: int) -> None:
    expected = units == sorted(set(units)) and all(0 <= unit < end for unit in units)
    assert native.are_ascending(np.array(units, np.int64), end) == expected


@given(subsets)
def test_places(slots: np.ndarray) -> None:
    out = np.empty(len(slots), np.int64)
    native.places(slots, 16 << 10, 1 << 45, out)
    assert out.tolist() == [(1 << 45) + (slot << 14) for slot in slots.tolist()]


@given(subsets, subsets)
def test_clear_common(units: np.ndarray, others: np.ndarray) -> None:
    values = np.arange(1, len(units) + 1)
    common = np.isin(units, others)
    assert native.clear_common(units, others, values) == common.sum()
    assert values.tolist() == np.where(common, 0, np.arange(1, len(units) + 1)).tolist()


@given(st.lists(st.sampled_from([0, 1 << 40, -5])))
def test_split(addresses: list[int]) -> None:
    given_ = np.array(addresses, np.int64)
    near, far = np.empty((2, len(given_)), np.int64)
    count = native.split(given_, near, far)
    assert near[:count].tolist() == np.flatnonzero(given_).tolist()
    assert far[: len(given_) - count].tolist() == np.flatnonzero(given_ == 0).tolist()


COMPILED = """
from flashllm.kernels import compiling, jit
from flashllm.kernels.slots import BOOKKEEPING
import numpy as np

def files():
    return sorted(path.name for path in jit.cache_directory().glob("slots.*"))

print(any(function.is_compiled for function in BOOKKEEPING))
compiling.compile_apart(BOOKKEEPING)
print(all(function.is_compiled for function in BOOKKEEPING))
before = files()
from flashllm.cache.window import Window
window = Window([9, 9], 9, 1)
for layer in (0, 1):
    window.reserve(layer, np.arange(3))
    window.use(layer, np.arange(8), np.arange(8) % 2 == 0)
window.begin_step()
window.use(0, np.arange(9))
window.begin_step()
print(files() == before)
"""


def test_all_of_it_is_compiled_ahead(tmp_path: Path) -> None:
    """In a process apart; where it is used it is not compiled again, for other types."""
    env = {**os.environ, "FLASHLLM_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
