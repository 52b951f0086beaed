"""Weights in the dtypes of the flash format: to codes and scales, and back to float32."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.errors import UnsupportedModel
from flashllm.flash.layout import GROUP, round_up

PLAIN = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
ZERO_CODE = {"q8": 128, "q4": 8, "q4m": 0}
"""The code of weight zero; of q4m, only where the minimum is zero too."""

LIMITS = {"f16": 65504.0, "bf16": 3.38e38, "q8": 65504.0 * 127, "q4": 65504.0 * 7, "q4m": 65504.0}
"""The largest weight of each dtype whose numbers or scales are narrower than float32."""

# Divisors of a group's largest weight that give q4 scales to choose from: -8 uses the whole range
# of codes for a lone extreme, 7 is the plain symmetric scale, those between clip a little.
Q4_DIVISORS = (-8.7, -8.0, -7.4, 7.0, 7.6)

Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A matrix [rows, cols] in one dtype.

    Plain dtypes: codes are the values themselves (float32, float16, bfloat16), the rest is None.
    q8, q4, q4m: codes uint8 [rows, cols]; scales float16 [rows, ceil(cols / 32)]; minimums, of q4m
    only, likewise. Groups of 32 run along the columns.
    """

    dtype: str
    codes: NDArray[Any]
    scales: NDArray[np.float16] | None = None
    minimums: NDArray[np.float16] | None = None

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return int(self.codes.shape[0])

    @property
    def cols(self) -> int:
        """Columns of the matrix."""
        return int(self.codes.shape[1])

    def is_finite(self) -> bool:
        """Whether no value, scale or minimum is NaN or infinite."""
        arrays = (self.codes, self.scales, self.minimums)
        return all(
            bool(np.isfinite(a).all()) for a in arrays if a is not None and a.dtype != np.uint8
        )


def quantize(weights: Floats, dtype: str) -> Quantized:
    """`weights` (finite float32 [rows, cols]) in `dtype`; rounding is to the nearest, ties to even.

    q8: scale = largest magnitude / 127. q4: of a few scales per group, the one with the least
    squared error. q4m: scale and minimum span the group. A last group of fewer than 32 columns
    counts as if filled with zeros.

    Raises UnsupportedModel if a weight is beyond the range of `dtype`.
    """
    if dtype == "f32":
        return Quantized(dtype, weights)
    if weights.size and np.abs(weights).max() > LIMITS[dtype]:
        raise UnsupportedModel(f"weights are too large for {dtype}; convert to bf16 or f32")
    if dtype in PLAIN:
        return Quantized(dtype, weights.astype(PLAIN[dtype]))
    rows, cols = weights.shape
    padded = np.zeros((rows, round_up(cols, GROUP)), np.float32)
    padded[:, :cols] = weights
    codes, scales, minimums = _QUANTIZERS[dtype](padded.reshape(rows, -1, GROUP))
    return Quantized(dtype, codes.reshape(rows, -1)[:, :cols], scales, minimums)


def dequantize(matrix: Quantized) -> Floats:
    """The weights `matrix` stands for, as float32 [rows, cols]."""
    if matrix.scales is None:
        return matrix.codes.astype(np.float32)
    rows, cols = matrix.codes.shape
    weights = np.empty((rows, matrix.scales.shape[1], GROUP), np.float32)
    flat = weights.reshape(rows, -1)
    flat[:, :cols] = matrix.codes
    flat[:, cols:] = ZERO_CODE[matrix.dtype]
    if matrix.minimums is None:
        weights -= np.float32(ZERO_CODE[matrix.dtype])
    weights *= matrix.scales[:, :, None].astype(np.float32)
    if matrix.minimums is not None:
        weights += matrix.minimums[:, :, None].astype(np.float32)
    return flat[:, :cols]


def stack(pieces: Sequence[Quantized]) -> Quantized:
    """One matrix of pieces that lie below each other, all of one dtype and width."""
    if len(pieces) == 1:
        return pieces[0]
    scales = [piece.scales for piece in pieces if piece.scales is not None]
    minimums = [piece.minimums for piece in pieces if piece.minimums is not None]
    return Quantized(
        pieces[0].dtype,
        np.concatenate([piece.codes for piece in pieces]),
        np.concatenate(scales) if scales else None,
        np.concatenate(minimums) if minimums else None,
    )


_Groups = tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.float16] | None]


def _quantize_q8(groups: Floats) -> _Groups:
    scales = (np.abs(groups).max(-1) / np.float32(127)).astype(np.float16)
    codes = np.rint(groups * _inverse(scales)).clip(-127, 127) + np.float32(128)
    return codes.astype(np.uint8), scales, None


def _quantize_q4(groups: Floats) -> _Groups:
    places = np.abs(groups).argmax(-1)[:, :, None]
    extremes = np.take_along_axis(groups, places, -1)[:, :, 0]
    codes = np.full(groups.shape, 8, np.uint8)
    scales = np.zeros(extremes.shape, np.float16)
    least = np.full(extremes.shape, np.inf, np.float32)
    for divisor in Q4_DIVISORS:
        trial = (extremes / np.float32(divisor)).astype(np.float16)
        steps = np.rint(groups * _inverse(trial)).clip(-8, 7)
        miss = steps * trial[:, :, None].astype(np.float32) - groups
        error = np.einsum("rgi,rgi->rg", miss, miss)
        better = error < least
        least[better] = error[better]
        scales[better] = trial[better]
        codes[better] = (steps[better] + np.float32(8)).astype(np.uint8)
    return codes, scales, None


def _quantize_q4m(groups: Floats) -> _Groups:
    minimums = groups.min(-1).astype(np.float16)
    lows = minimums.astype(np.float32)
    scales = ((groups.max(-1) - lows) / np.float32(15)).astype(np.float16)
    codes = np.rint((groups - lows[:, :, None]) * _inverse(scales)).clip(0, 15)
    return codes.astype(np.uint8), scales, minimums


_QUANTIZERS = {"q8": _quantize_q8, "q4": _quantize_q4, "q4m": _quantize_q4m}


def _inverse(scales: NDArray[np.float16]) -> Floats:
    """1 / scales as float32 [..., 1]; zero where a scale is zero."""
    wide = scales.astype(np.float32)[..., None]
    return np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide != 0)
