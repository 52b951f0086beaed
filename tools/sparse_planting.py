"""Statistics of activations, planted in the weights of a layer: which neurons fire, which of them
the predictor expects, and how both change from token to token.

A token's vector holds, in dimensions that nothing else writes, a code c and a constant 1. The row
of neuron n that decides whether it fires holds a direction d[n] for the code and, for the constant,
its rate h[n] less a threshold: it fires where d[n] . c + h[n] exceeds that. Codes of consecutive
tokens are correlated, and rates are of the neurons (few fire often, most rarely): both make what a
token needs alike to what those before it needed. The predictor knows d[n] with an error, and its
threshold is lower.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from sparse_coactivation import normals

from flashllm.flash.quantize import Quantized, dequantize, quantize

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

CODE = 64
CARRIER = 64
"""The dimension that is 1 for every token."""
RESERVED = 96
"""Dimensions that only the embedding writes: whole panels of rows, whole groups of columns."""
WINDOWS = 33
"""Curves are for windows of 0 to 32 tokens."""

SAMPLE, SEARCHED = 256, 64
"""Tokens that thresholds are taken from, and those that the predictor's error is searched with."""
FOLLOWED = 96
"""Consecutive tokens that the curves are taken from, after as many as the widest window has."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What is planted.

    silent: share of neurons that do not fire. misses: share of those that fire and are not
    expected. false_positives: share of the silent that are. reuse: correlation of consecutive
    tokens' codes. hot: standard deviation of neurons' rates, where that of what they read is 1.
    """

    silent: float
    misses: float
    false_positives: float
    reuse: float
    hot: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a layer shows: shares, and curves float64 [WINDOWS] of predicted neurons by window.

    window: those that none of the k tokens before had; resident: those of the last k + 1 tokens.
    fired is bool [tokens, neurons], of the sample.
    """

    recall: float
    false_positives: float
    active: float
    predicted: float
    window: NDArray[np.float64]
    resident: NDArray[np.float64]
    fired: Bools


@dataclasses.dataclass(frozen=True)
class PlantedLayer:
    """Neurons of a layer: `rows`, whose first RESERVED columns these are, in the model's dtype;
    the predictor's columns for the code, in q8, and its bias; and what they show."""

    rows: Quantized
    up: Quantized
    bias: Floats
    figures: Figures

    def predictor(self, rank: int, hidden: int) -> tuple[Quantized, Quantized]:
        """Down [rank, hidden] and up [neurons, rank], in q8; rank is at least CODE."""
        down = np.zeros((rank, RESERVED), np.float32)
        down[:CODE, :CODE] = np.eye(CODE)
        return widened(quantize(down, "q8"), hidden), widened(self.up, rank)


def token_codes(vocab: int, reuse: float, rng: np.random.Generator) -> Floats:
    """A code for every token, of length sqrt(CODE): float32 [vocab, CODE].

    A first-order autoregression over token ids.
    """
    noise = rng.standard_normal((vocab, CODE), dtype=np.float32)
    codes = noise.copy()
    fresh = np.float32(math.sqrt(1 - reuse * reuse))
    for i in range(1, vocab):
        codes[i] = np.float32(reuse) * codes[i - 1] + fresh * noise[i]
    lengths: Floats = np.linalg.norm(codes, axis=1, keepdims=True)
    return codes * (np.float32(math.sqrt(CODE)) / lengths)


def plant(
    neurons: int,
    dtype: str,
    codes: Floats,
    wanted: Statistics,
    shares: NDArray[np.float64] | None,
    rng: np.random.Generator,
) -> PlantedLayer:
    """A layer that shows `wanted` for tokens of these codes, weights rounded to `dtype`.

    shares: of co-activation along the neurons (sparse_coactivation.py), None for independent ones.
    """
    drawn = normals(neurons, CODE + 1, shares, rng)
    directions, rates = drawn[:, :CODE], drawn[:, CODE] * np.float32(wanted.hot)
    gain = np.float32(math.sqrt(1 - wanted.hot**2))
    directions *= gain / np.linalg.norm(directions, axis=1, keepdims=True)
    sample = codes[rng.choice(len(codes), min(SAMPLE, len(codes)), replace=False)]

    rows = np.zeros((neurons, RESERVED), np.float32)
    rows[:, :CODE] = dequantize(quantize(directions, dtype))
    drive = sample @ rows[:, :CODE].T + rates
    rows[:, CARRIER] = rates - _quantile(drive.reshape(-1), wanted.silent)
    stored = quantize(rows, dtype)
    rows = dequantize(stored)
    fired = sample @ rows[:, :CODE].T + rows[:, CARRIER] > 0

    errors = rng.standard_normal((neurons, CODE), dtype=np.float32) * (gain / math.sqrt(CODE))
    size = _error_size(sample, rows[:, :CODE], rates, errors, fired, wanted)
    up = quantize(rows[:, :CODE] + size * errors, "q8")
    seen = dequantize(up)
    scores = sample @ seen.T + rates
    bias = rates - _quantile(scores[~fired], 1 - wanted.false_positives)
    expected = sample @ seen.T + bias > 0

    begin = int(rng.integers(max(1, len(codes) - WINDOWS - FOLLOWED)))
    text = codes[begin : begin + WINDOWS + FOLLOWED]
    window, resident = curves(text @ seen.T + bias > 0)
    figures = Figures(
        recall=float(expected[fired].mean()),
        false_positives=float(expected[~fired].mean()),
        active=float(fired.mean()),
        predicted=float(expected.mean()),
        window=window,
        resident=resident,
        fired=fired,
    )
    return PlantedLayer(stored, up, bias.astype(np.float32), figures)


def curves(needed: Bools) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of neurons by window, of consecutive tokens' bool [tokens, neurons]: [WINDOWS] each.

    First those that a token needs and none of the k tokens before it had, then those in the union
    of the last k + 1 tokens; k = 0, 1, ... The first WINDOWS tokens only begin the history.
    """
    tokens, neurons = needed.shape
    last = np.full(neurons, -WINDOWS - 1)
    fresh, kept = np.zeros(WINDOWS + 1), np.zeros(WINDOWS + 1)
    for i, row in enumerate(needed):
        ages = np.minimum(i - last, WINDOWS)
        last[row] = i
        if i >= WINDOWS:
            fresh += np.bincount(ages[row], minlength=WINDOWS + 1)
            kept += np.bincount(np.minimum(i - last, WINDOWS), minlength=WINDOWS + 1)
    counted = neurons * max(1, tokens - WINDOWS)
    return fresh[::-1].cumsum()[::-1][1:] / counted, kept.cumsum()[:WINDOWS] / counted


def widened(matrix: Quantized, cols: int) -> Quantized:
    """`matrix`, whose columns are whole groups, with columns of zero weights up to `cols`."""
    rows, found = matrix.codes.shape
    zero = quantize(np.zeros((1, cols - found), np.float32), matrix.dtype)

    def grown(part: NDArray, more: NDArray) -> NDArray:
        return np.hstack([part, np.broadcast_to(more, (rows, more.shape[1]))])

    if matrix.scales is None or zero.scales is None:
        return Quantized(matrix.dtype, grown(matrix.codes, zero.codes))
    scales = grown(matrix.scales, zero.scales)
    return Quantized(matrix.dtype, grown(matrix.codes, zero.codes), scales)


def _error_size(
    sample: Floats, rows: Floats, rates: Floats, errors: Floats, fired: Bools, wanted: Statistics
) -> np.float32:
    """How large the predictor's errors must be for the wanted misses, by bisection."""
    exact = sample[:SEARCHED] @ rows.T + rates
    noise = sample[:SEARCHED] @ errors.T
    silent = ~fired[:SEARCHED]
    low, high = 0.0, 3.0
    for _ in range(14):
        size = (low + high) / 2
        scores = exact + np.float32(size) * noise
        least = _quantile(scores[silent], 1 - wanted.false_positives)
        if (scores[~silent] <= least).mean() < wanted.misses:
            low = size
        else:
            high = size
    return np.float32(low)


def _quantile(values: Floats, share: float) -> np.float32:
    """What `share` of the values do not exceed."""
    place = min(len(values) - 1, max(0, round(share * len(values)) - 1))
    return np.float32(np.partition(values, place)[place])
