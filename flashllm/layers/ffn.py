"""The feed-forward network over its units."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, Floats, RowFFN, TileFFN
from flashllm.layers.buffers import StepBuffers


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """One layer's feed-forward, gated (Shazeer, 2020) or not, dense."""

    weights: TileFFN | RowFFN
    activation: str
    gate_bias: Floats | None = None
    up_bias: Floats | None = None
    down_bias: Floats | None = None

    def record(self, program: Program, s: StepBuffers, out: Floats, *, accumulate: bool) -> None:
        """out (+)= feed-forward of s.ffn_in."""
        if self.weights.dtype in QUANTIZED:
            program.quantize(s.ffn_in)
        program.ffn_hidden(
            s.ffn_in,
            self.weights,
            self.activation,
            s.neurons,
            gate_bias=self.gate_bias,
            up_bias=self.up_bias,
        )
        program.ffn_down(s.neurons, self.weights, out, bias=self.down_bias, accumulate=accumulate)
