"""Which neurons of a layer a token will fire: predicted by a matrix product of low rank."""

from __future__ import annotations

import dataclasses

from flashllm.flash.quantize import Floats


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Neuron n is expected to fire for x, what the feed-forward reads, iff score[n] > 0, where

    score = up @ (down @ x) + bias: down float32 [rank, hidden], up [neurons, rank], bias [neurons].
    rank is a multiple of 32.
    """

    down: Floats
    up: Floats
    bias: Floats
