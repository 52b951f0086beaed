"""Both ends of the model: tokens to vectors, and vectors to logits."""

from __future__ import annotations

import dataclasses

import numpy as np

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, FineActivations, Floats, TileMatrix, padded
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.norm import Norm


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Rows of the token table times `scale`, plus rows of the table of positions, if any."""

    weight: TileMatrix
    scale: float = 1.0
    positions: TileMatrix | None = None

    def record(self, program: Program, s: StepBuffers) -> None:
        """x = scale * weight[tokens] + positions[positions]."""
        program.embed(s.tokens, self.weight, s.x, scale=self.scale)
        if self.positions:
            program.embed(s.positions, self.positions, s.x, accumulate=True)


class Head:
    """The last norm and the product with every token's vector, for a few rows at a time."""

    def __init__(self, program: Program, norm: Norm, weight: TileMatrix, soft_cap: float | None):
        self.rows = program.capacity
        self._vocab = weight.rows
        self._program = program
        self._x: Floats = np.zeros((self.rows, padded(weight.cols)), np.float32)
        self._logits: Floats = np.zeros((self.rows, padded(weight.rows)), np.float32)
        normed = FineActivations(self.rows, weight.cols)
        norm.record(program, self._x, normed.values)
        if weight.dtype in QUANTIZED:
            program.quantize(normed)
        program.matmul(normed, weight, self._logits)
        if soft_cap is not None:
            program.soft_cap(self._logits, weight.rows, soft_cap)

    def logits(self, x: Floats) -> Floats:
        """Logits float32 [rows, vocabulary] of rows of the residual stream, in a new array."""
        result = np.empty((len(x), self._vocab), np.float32)
        for first in range(0, len(x), self.rows):
            count = min(self.rows, len(x) - first)
            self._x[:count] = x[first : first + count]
            self._program.run(count)
            result[first : first + count] = self._logits[:count, : self._vocab]
        return result
