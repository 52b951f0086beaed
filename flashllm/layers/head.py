"""Both ends of the model: tokens to vectors, and vectors to logits."""

from __future__ import annotations

import dataclasses

import numpy as np

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, FineActivations, Floats, TileMatrix, padded
from flashllm.layers.buffers import StepBuffers


@dataclasses.dataclass(frozen=True)
class Embedding:
    """Rows of the token table."""

    weight: TileMatrix

    def record(self, program: Program, s: StepBuffers) -> None:
        """x = weight[tokens]."""
        program.embed(s.tokens, self.weight, s.x)


class Head:
    """The last norm and the product with every token's vector, for a few rows at a time."""

    def __init__(self, program: Program, norm: Floats, norm_eps: float, weight: TileMatrix):
        self.rows = program.capacity
        self._vocab = weight.rows
        self._program = program
        self._x: Floats = np.zeros((self.rows, padded(weight.cols)), np.float32)
        self._logits: Floats = np.zeros((self.rows, padded(weight.rows)), np.float32)
        normed = FineActivations(self.rows, weight.cols)
        program.rms_norm(self._x, norm, norm_eps, normed.values)
        if weight.dtype in QUANTIZED:
            program.quantize(normed)
        program.matmul(normed, weight, self._logits)

    def logits(self, x: Floats) -> Floats:
        """Logits float32 [rows, vocabulary] of rows of the residual stream, in a new array."""
        result = np.empty((len(x), self._vocab), np.float32)
        for first in range(0, len(x), self.rows):
            count = min(self.rows, len(x) - first)
            self._x[:count] = x[first : first + count]
            self._program.run(count)
            result[first : first + count] = self._logits[:count, : self._vocab]
        return result
