"""A matrix with its bias."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import Activations, FineActivations, Floats, TileMatrix


@dataclasses.dataclass(frozen=True)
class Linear:
    """y = weight x + bias."""

    weight: TileMatrix
    bias: Floats | None = None

    def record(
        self,
        program: Program,
        x: Activations | FineActivations,
        out: Floats,
        *,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out = y, or out += y."""
        bias = self.bias
        program.matmul(x, self.weight, out, bias=bias, accumulate=accumulate, parallel=parallel)
