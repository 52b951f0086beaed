"""Which neurons of a feed-forward fire: scores above 0, predicted or exact."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Protocol

from flashllm.kernels.program import Program
from flashllm.kernels.weights import (
    QUANTIZED,
    Activations,
    Floats,
    Nonlinearity,
    RowFFN,
    TileMatrix,
)


class Firing(Protocol):
    """Says which neurons fire for what the feed-forward reads."""

    is_cheap: ClassVar[bool]
    """Whether it takes little of a layer's time, so that it can be asked twice."""

    @property
    def reads_codes(self) -> bool:
        """Whether the int8 form of x is needed."""

    def record(self, program: Program, x: Activations, scores: Activations) -> None:
        """scores[t, n] > 0 where neuron n is to be computed for token t."""


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A predictor of low rank: up (down x) + bias ("LLM in a flash", arXiv 2312.11514, 3.1).

    down [rank, hidden], up [neurons, rank]. hidden: room for down x.
    """

    down: TileMatrix
    up: TileMatrix
    bias: Floats
    hidden: Activations
    is_cheap: ClassVar[bool] = True

    @property
    def reads_codes(self) -> bool:
        """Whether the int8 form of x is needed."""
        return self.down.dtype in QUANTIZED

    def record(self, program: Program, x: Activations, scores: Activations) -> None:
        """scores = up (down x) + bias."""
        program.matmul(x, self.down, self.hidden.values)
        if self.up.dtype in QUANTIZED:
            program.quantize(self.hidden)
        program.matmul(self.hidden, self.up, scores.values, bias=self.bias)


@dataclasses.dataclass(frozen=True)
class Exact:
    """The neurons that fire, by the rows that decide it: a gate's or, without gates, up's.

    rows: them alone, all of the layer.
    """

    rows: RowFFN
    activation: Nonlinearity
    bias: Floats | None
    is_cheap: ClassVar[bool] = False

    @property
    def reads_codes(self) -> bool:
        """Whether the int8 form of x is needed."""
        return self.rows.dtype in QUANTIZED

    def record(self, program: Program, x: Activations, scores: Activations) -> None:
        """scores = activation(rows x + bias), which is 0 where a neuron is silent."""
        program.ffn_hidden(x, self.rows, self.activation, scores, up_bias=self.bias)
