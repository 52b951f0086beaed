"""Norms, as layers record them."""

from __future__ import annotations

import dataclasses
from typing import Literal

from flashllm.kernels.program import Program
from flashllm.kernels.weights import Floats


@dataclasses.dataclass(frozen=True)
class Norm:
    """RMSNorm or LayerNorm of a vector, or of each of `groups` vectors that lie side by side."""

    kind: Literal["rms", "layer"]
    eps: float
    weight: Floats
    bias: Floats | None = None
    groups: int = 1

    def record(
        self,
        program: Program,
        x: Floats,
        out: Floats,
        *,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out = norm(x), or out += norm(x); out may be x."""
        norm = program.rms_norm if self.kind == "rms" else program.layer_norm
        norm(
            x,
            self.weight,
            self.eps,
            out,
            bias=self.bias,
            groups=self.groups,
            accumulate=accumulate,
            parallel=parallel,
        )
