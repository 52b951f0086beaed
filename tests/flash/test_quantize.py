"""Quantisation stays within half a step, and loses no more than the public quantizer."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize as public_dequantize
from gguf.quants import quantize as public_quantize

from flashllm.errors import UnsupportedModel
from flashllm.flash.layout import DTYPES
from flashllm.flash.quantize import Quantized, dequantize, quantize


def weights(rows: int = 64, cols: int = 96) -> np.ndarray:
    return np.random.default_rng(7).standard_normal((rows, cols), dtype=np.float32)


def squared_error(w: np.ndarray, again: np.ndarray) -> float:
    return float(((w - again) ** 2).sum())


def test_plain_dtypes_round_to_nearest() -> None:
    w = weights()
    np.testing.assert_array_equal(dequantize(quantize(w, "f32")), w)
    np.testing.assert_array_equal(dequantize(quantize(w, "f16")), w.astype(np.float16))
    error = np.abs(dequantize(quantize(w, "bf16")) - w)
    assert (error <= np.abs(w) * 2.0**-8).all()


def test_q8_is_within_half_a_step() -> None:
    w = weights()
    largest = np.abs(w.reshape(64, 3, 32)).max(-1)
    error = np.abs(dequantize(quantize(w, "q8")) - w).reshape(64, 3, 32).max(-1)
    # a float16 scale is off by up to 2**-11 of itself, at every one of its steps
    assert (error <= largest * (1 / 254 + 2.0**-10)).all()


@pytest.mark.parametrize(("dtype", "peer", "gain"), [("q4", "Q4_0", 0.95), ("q4m", "Q4_1", 0.89)])
def test_the_search_pays(dtype: str, peer: str, gain: float) -> None:
    """Root-mean-square errors well below those of scales that just span the group."""
    w = weights(256, 256)
    kind = GGMLQuantizationType[peer]
    theirs = squared_error(w, public_dequantize(public_quantize(w, kind), kind))
    assert squared_error(w, dequantize(quantize(w, dtype))) <= theirs * gain**2


def test_levels_that_are_there_are_found() -> None:
    """Weights on 16 levels lose no more than the rounding of scale and minimum to float16."""
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 16, (64, 32)).astype(np.float32)
    codes[:, :2] = 0, 15
    scales, lows = (rng.uniform(0.01, 1, (64, 1)).astype(np.float16) for _ in range(2))
    for dtype, low in (("q4m", -lows.astype(np.float32)), ("q4", -8 * scales.astype(np.float32))):
        w = codes * scales.astype(np.float32) + low
        np.testing.assert_allclose(dequantize(quantize(w, dtype)), w, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("dtype", "peer"), [("q4", "Q4_0"), ("q8", "Q8_0"), ("q4m", "Q4_1")])
def test_no_worse_than_the_public_quantizer(dtype: str, peer: str) -> None:
    w = weights()
    kind = GGMLQuantizationType[peer]
    theirs = squared_error(w, public_dequantize(public_quantize(w, kind), kind))
    assert squared_error(w, dequantize(quantize(w, dtype))) <= theirs * 1.001


@pytest.mark.parametrize("dtype", DTYPES)
def test_quantising_twice_changes_nothing_more(dtype: str) -> None:
    once = dequantize(quantize(weights(), dtype))
    twice = dequantize(quantize(once, dtype))
    tolerance = {"q4": 0.05, "q4m": 2e-3, "q8": 1e-3}.get(dtype, 0)
    assert squared_error(once, twice) <= tolerance**2 * float((once**2).sum())


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_ragged_edges_and_extremes(dtype: str) -> None:
    w = np.zeros((3, 45), np.float32)
    w[1, 44], w[2, 0] = 3.0, -1e-30
    again = dequantize(quantize(w, dtype))
    assert again.shape == w.shape
    assert not again[0].any()
    assert abs(again[1, 44] - 3.0) < 0.01
    np.testing.assert_allclose(again[2], w[2], atol=1e-7)


@pytest.mark.parametrize("dtype", ["f16", "q8", "q4", "q4m", "bf16"])
def test_weights_beyond_the_range_are_refused(dtype: str) -> None:
    with pytest.raises(UnsupportedModel, match=dtype):
        quantize(np.array([[3.4e38] + [0.0] * 31], np.float32), dtype)


def test_non_finite_numbers_are_seen() -> None:
    matrix = quantize(weights(), "q4m")
    assert matrix.is_finite()
    scales = matrix.scales.copy()
    scales[3, 1] = np.nan
    assert not Quantized("q4m", matrix.codes, scales, matrix.minimums).is_finite()
