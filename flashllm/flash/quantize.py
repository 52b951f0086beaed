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

SEARCH_VERSION = 2
"""Changes with any change of the codes that quantize() gives."""

Q4_STEPS = (-9.0, -8.4, -7.8, -7.2, -6.6, 7.8, 7.0, 6.2)
"""Levels from zero to a group's largest weight, where the search for q4's scale starts. On normal
weights the error is 0.2 % above the least that 400 starts find; 17 starts leave 0.03 %, 5 leave
0.4 %, and the best of 5 without fitting, 2 %."""

Q4M_STEPS = (15.0, 14.4, 15.3, 16.2, 17.2, 18.1, 19.1, 20.0)
Q4M_SHARES = (0.0, 0.5, 1.0)
"""Levels across a group's span, where the search for q4m's scale starts, and the shares of those
beyond 15 that lie below the minimum. On normal weights: 1.3 % above the least error that 120
starts find; scale and minimum that just span the group, 14 %."""

_TINY = np.float32(1e-30)
"""Scales and weights below this count as zero: their inverses could overflow."""

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

    q8: scale = largest magnitude / 127. q4, q4m: from each of several starts, the levels nearest to
    the weights and the scale (and minimum) that fits these levels best; of all, the one with the
    least sum of squares left; fitted once more, rounded to float16, and codes anew. Weighting the
    squares, by |w|, w^2, |w| + rms or the norms' weights, made no model better
    (docs/measurements.md). A last group of fewer than 32 columns counts as if filled with zeros.

    This is the specification of kernels/cpu/quantizing.py, which gives the very same codes
    many times sooner.

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


def search_starts(dtype: str) -> Floats:
    """Where the search for the scales of `dtype` starts: float32 [2, starts], steps and shifts.

    A shift is the distance, in steps, from a group's least weight up to its minimum.
    """
    starts = [(steps, 0.0) for steps in Q4_STEPS] if dtype == "q4" else []
    if dtype == "q4m":
        starts = [(s, share * (s - 15)) for s in Q4M_STEPS for share in Q4M_SHARES]
        starts = list(dict.fromkeys(starts))
    return np.array(starts, np.float32).reshape(-1, 2).T.copy()


def _quantize_q8(groups: Floats) -> _Groups:
    scales = _halves(np.abs(groups).max(-1) / np.float32(127))
    levels = _levels(groups * _inverse(scales)[..., None], -127, 127)
    return (levels + np.float32(128)).astype(np.uint8), scales, None


def _quantize_q4(groups: Floats) -> _Groups:
    columns = np.ascontiguousarray(np.moveaxis(groups, -1, 0))
    places = np.abs(groups).argmax(-1)[:, :, None]
    extremes = np.take_along_axis(groups, places, -1)[:, :, 0]
    best, most = np.zeros_like(extremes), np.zeros_like(extremes)
    for steps in search_starts("q4")[0]:
        start = _ratio(np.full_like(extremes, steps), extremes, np.abs(extremes) > _TINY)
        products, squares = _fit_q4(columns, start)
        scale = _ratio(products, squares, squares > 0)
        explained = scale * products
        better = explained > most
        best[better], most[better] = scale[better], explained[better]
    products, squares = _fit_q4(columns, _inverse(best))
    scales = _halves(_ratio(products, squares, squares > 0))
    codes = _levels(groups * _inverse(scales)[..., None], -8, 7) + np.float32(8)
    return codes.astype(np.uint8), scales, None


def _fit_q4(columns: Floats, inverse: Floats) -> tuple[Floats, Floats]:
    """Of the levels nearest to columns * inverse: sums of weight * level, and of level^2."""
    levels = _levels(columns * inverse, -8, 7)
    return _sum(columns * levels), _sum(levels * levels)


def _quantize_q4m(groups: Floats) -> _Groups:
    columns = np.ascontiguousarray(np.moveaxis(groups, -1, 0))
    lows = groups.min(-1)
    spans = groups.max(-1) - lows
    above = columns - lows
    best, best_shift, most = (np.zeros_like(lows) for _ in range(3))
    for steps, shift in search_starts("q4m").T:
        scale = spans / steps
        scale, shifts, explained = _fit_q4m(above, scale, shift * scale)
        better = explained > most
        best[better], best_shift[better] = scale[better], shifts[better]
        most[better] = explained[better]
    scale, shifts, _ = _fit_q4m(above, best, best_shift)
    scales, minimums = _halves(scale), _halves(lows + shifts)
    rest = groups - minimums.astype(np.float32)[..., None]
    return _levels(rest * _inverse(scales)[..., None], 0, 15).astype(np.uint8), scales, minimums


def _fit_q4m(above: Floats, scale: Floats, shift: Floats) -> tuple[Floats, Floats, Floats]:
    """Scale, shift and the squares explained, for the levels nearest to (above - shift) / scale.

    Where all levels are the same, scale and shift stay and nothing is explained.
    """
    levels = _levels((above - shift) * _inverse(scale), 0, 15)
    sums, total, count = _sum(levels), _sum(above), np.float32(GROUP)
    spread = count * _sum(levels * levels) - sums * sums
    along = count * _sum(above * levels) - sums * total
    slope = _ratio(along, spread, spread > 0)
    fitted = (total - slope * sums) / count
    known = spread > 0
    return np.where(known, slope, scale), np.where(known, fitted, shift), slope * along


_QUANTIZERS = {"q8": _quantize_q8, "q4": _quantize_q4, "q4m": _quantize_q4m}


def _levels(x: Floats, low: int, high: int) -> Floats:
    """The nearest whole numbers from low to high."""
    levels: Floats = np.rint(x.clip(low, high))
    return levels


def _sum(columns: Floats) -> Floats:
    """The sum over the first axis, one after another: the order is part of the result."""
    total = np.zeros(columns.shape[1:], np.float32)
    for column in columns:
        total += column
    return total


def _halves(numbers: Floats) -> NDArray[np.float16]:
    """The nearest finite float16."""
    return numbers.clip(-65504, 65504).astype(np.float16)


def _ratio(numerator: Floats, denominator: Floats, where: NDArray[np.bool_]) -> Floats:
    """Their quotient, 0 elsewhere."""
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=where)


def _inverse(scales: NDArray[Any]) -> Floats:
    """1 / scales as float32; zero where a scale is as good as zero."""
    wide = scales.astype(np.float32)
    return _ratio(np.ones_like(wide), wide, np.abs(wide) > _TINY)
