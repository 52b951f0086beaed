"""The quantising kernel gives the codes of flash/quantize.py, to the last bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.flash.codecs import pack_tiles
from flashllm.flash.layout import ceil_div
from flashllm.flash.quantize import LIMITS, dequantize, quantize, search_starts
from flashllm.kernels.quantizing import quantize_into, tiles_for

STORED = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def both(weights: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """Tiles by the kernel, by its twin, and the kernel's sums."""
    tiles = tiles_for(*weights.shape, dtype)
    sums = quantize_into(weights, dtype, search_starts(dtype), tiles)
    quantized = quantize(weights.astype(np.float32), dtype)
    rows, cols = weights.shape
    return tiles, pack_tiles(quantized, ceil_div(rows, 16), ceil_div(cols, 32)), sums


def hard_weights(rows: int, cols: int, stored: Any) -> np.ndarray:
    """Normal weights with rows of every kind that could go wrong."""
    w = np.random.default_rng(rows * cols).standard_normal((rows, cols)).astype(np.float32)
    kinds = [1e-6, 0.0, -0.0, 3e-8, 1e-30, 1e-42, 3000.0]
    for row, factor in zip(w, kinds, strict=False):
        row *= np.float32(factor)
    if rows > 10:
        w[7] = 3.0
        w[8] = -w[8] * w[8]
        w[9, ::2] = w[9].max()
        w[10] = np.float32(1) + w[10] * np.float32(1e-3)
    return w.astype(stored)


@pytest.mark.parametrize("source", STORED)
@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (37, 109), (33, 64), (7, 31)])
def test_the_kernel_and_its_twin_agree(shape: tuple[int, int], dtype: str, source: str) -> None:
    ours, theirs, _ = both(hard_weights(*shape, STORED[source]), dtype)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
def test_at_the_limit_of_the_dtype(dtype: str) -> None:
    w = np.linspace(-1, 1, 16 * 64, dtype=np.float32).reshape(16, 64) * np.float32(LIMITS[dtype])
    ours, theirs, _ = both(w, dtype)
    np.testing.assert_array_equal(ours, theirs)
    assert np.isfinite(dequantize(quantize(w, dtype))).all()


@settings(max_examples=60)
@given(
    bits=st.lists(st.integers(0, (1 << 16) - 1), min_size=64, max_size=64),
    dtype=st.sampled_from(["q8", "q4", "q4m"]),
)
def test_any_halves(bits: list[int], dtype: str) -> None:
    w = np.array(bits, np.uint16).view(np.float16).reshape(2, 32)
    w = np.where(np.isfinite(w), w, np.float16(0.5))
    ours, theirs, _ = both(w, dtype)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
def test_rows_do_not_depend_on_their_neighbours(dtype: str) -> None:
    w = hard_weights(48, 96, np.float32)
    whole, _, _ = both(w, dtype)
    pieces = [both(w[i : i + 16], dtype)[0] for i in (0, 16, 32)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
def test_the_sums_are_the_error_and_the_power(dtype: str) -> None:
    w = hard_weights(37, 109, np.float32)
    _, _, (error, power) = both(w, dtype)
    again = dequantize(quantize(w, dtype)).astype(np.float64)
    assert power == pytest.approx(float((w.astype(np.float64) ** 2).sum()), rel=1e-5)
    assert error == pytest.approx(float(((w - again) ** 2).sum()), rel=1e-3)


def test_no_scale_of_the_old_grid_does_better() -> None:
    """The search is near the least error: no scale of a fine grid leaves 1 % less."""
    w = np.random.default_rng(5).standard_normal((8, 32), dtype=np.float32)
    found = ((dequantize(quantize(w, "q4")) - w) ** 2).sum(1)
    extremes = np.take_along_axis(w, np.abs(w).argmax(1, keepdims=True), 1)
    least = np.full(8, np.inf)
    for steps in np.concatenate([np.linspace(-11, -4, 300), np.linspace(4, 11, 300)]):
        scale = extremes / steps
        levels = np.rint(w / scale).clip(-8, 7)
        fitted = (w * levels).sum(1, keepdims=True) / (levels**2).sum(1, keepdims=True)
        least = np.minimum(least, ((levels * fitted - w) ** 2).sum(1))
    assert found.sum() <= least.sum() * 1.02
