"""The feed-forward block: norm, then the gated network over its units."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, Floats, RowFFN, TileFFN
from flashllm.layers.buffers import StepBuffers


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """One layer's gated feed-forward (Shazeer, 2020), dense."""

    norm: Floats
    norm_eps: float
    weights: TileFFN | RowFFN
    activation: str

    def record(self, program: Program, s: StepBuffers) -> None:
        """x += down(act(gate(norm(x))) * up(norm(x)))."""
        program.rms_norm(s.x, self.norm, self.norm_eps, s.ffn_in.values)
        if self.weights.dtype in QUANTIZED:
            program.quantize(s.ffn_in)
        program.ffn_hidden(s.ffn_in, self.weights, self.activation, s.neurons)
        program.ffn_down(s.neurons, self.weights, s.x)
