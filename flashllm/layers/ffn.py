"""The feed-forward network over its units."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, Floats, Nonlinearity, RowFFN, TileFFN
from flashllm.layers.buffers import StepBuffers


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """One layer's feed-forward, gated (Shazeer, 2020) or not, dense.

    quantized_before: whether s.ffn_in is in its int8 form already, if that is needed.
    """

    weights: TileFFN | RowFFN
    activation: Nonlinearity
    gate_bias: Floats | None = None
    up_bias: Floats | None = None
    down_bias: Floats | None = None
    quantized_before: bool = False

    @property
    def reads_codes(self) -> bool:
        """Whether the int8 form of s.ffn_in is needed."""
        return self.weights.dtype in QUANTIZED

    def part(self, first: int, count: int) -> FeedForward:
        """Neurons first .. first+count-1, of whole units, to be added to what those before gave."""
        span = slice(first, first + count)
        return dataclasses.replace(
            self,
            weights=self.weights.part(first, count),
            gate_bias=None if self.gate_bias is None else self.gate_bias[span],
            up_bias=None if self.up_bias is None else self.up_bias[span],
            down_bias=None if first else self.down_bias,
            quantized_before=self.quantized_before or first > 0,
        )

    def record(self, program: Program, s: StepBuffers, out: Floats, *, accumulate: bool) -> None:
        """out (+)= feed-forward of s.ffn_in."""
        if self.reads_codes and not self.quantized_before:
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
