"""Which neurons of a layer a token will fire: predicted by a matrix product of low rank."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.quantize import Floats, dequantize, quantize

RANK_STEP = 32
"""Ranks are multiples of this: of the groups in which `up` is quantised."""

DTYPE = "q8"
"""What down and up are stored in."""

ROWS = 256
"""Tokens scored at once."""

ROUNDING = 1e-6
"""How far a score may be off, as a share of the largest, when it is computed in another order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Neuron n is expected to fire for x, what the feed-forward reads, iff score[n] > 0, where

    score = up @ (down @ x) + bias: down float32 [rank, hidden], up [neurons, rank], bias [neurons].
    rank is a multiple of 32.
    """

    down: Floats
    up: Floats
    bias: Floats

    @property
    def rank(self) -> int:
        """Rows of down."""
        return len(self.down)

    def scores(self, x: Floats) -> Floats:
        """The scores of tokens x [tokens, hidden]: float32 [tokens, neurons]."""
        low: Floats = x @ self.down.T
        found: Floats = low @ self.up.T
        found += self.bias
        return found

    def fires(self, x: Floats) -> NDArray[np.bool_]:
        """The neurons expected to fire for tokens x [tokens, hidden]: bool [tokens, neurons]."""
        fires = np.empty((len(x), len(self.bias)), np.bool_)
        for first in range(0, len(x), ROWS):
            rows = slice(first, first + ROWS)
            np.greater(self.scores(x[rows]), 0, out=fires[rows])
        return fires

    def stored(self, mean: Floats) -> Predictor:
        """This predictor of x - mean as one of x, as it is once stored: down and up in DTYPE.

        The bias makes up for what rounding does to the mean, float32 [hidden].
        """
        down, up = (dequantize(quantize(part, DTYPE)) for part in (self.down, self.up))
        return Predictor(down, up, self.bias - up @ (down @ mean))

    def shifted(self, shift: float) -> Predictor:
        """The predictor whose scores are higher by `shift`."""
        return Predictor(self.down, self.up, self.bias + np.float32(shift))

    def reordered(self, order: NDArray[np.int64]) -> Predictor:
        """The predictor whose neuron j is this one's neuron order[j]."""
        return Predictor(self.down, self.up[order], self.bias[order])


@dataclasses.dataclass(frozen=True)
class Quality:
    """How well a predictor does, as shares.

    recall: of the neurons that fire, those predicted. false_positives: of the silent ones, those
    predicted. active, predicted: of all neurons, those that fire, and those predicted.
    """

    recall: float
    false_positives: float
    active: float
    predicted: float


def quality(predicted: NDArray[np.bool_], fired: NDArray[np.bool_]) -> Quality:
    """How well `predicted` does against `fired`: bool [tokens, neurons] both."""
    firing, hits = int(fired.sum()), int((predicted & fired).sum())
    chosen, silent = int(predicted.sum()), fired.size - firing
    return Quality(
        recall=hits / firing if firing else 1.0,
        false_positives=(chosen - hits) / silent if silent else 0.0,
        active=firing / fired.size,
        predicted=chosen / fired.size,
    )


def threshold(scores: Floats, fired: NDArray[np.bool_], recall: float) -> float:
    """The highest threshold that a share of `recall` of the neurons that fire lies above.

    scores float32, fired bool [tokens, neurons]; recall is from 0 to 1. Where nothing fires it is
    above all scores.
    """
    firing = scores[fired]
    margin = ROUNDING * float(np.abs(scores).max(initial=1.0))
    needed = math.ceil(recall * firing.size)
    if needed == 0:
        return float(scores.max(initial=0.0)) + margin
    return float(np.partition(firing, -needed)[-needed]) - margin
