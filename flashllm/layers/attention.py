"""Attention: projections, norms of queries and keys, positions, the cache, and the way back."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, Floats, Scoring
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.linear import Linear
from flashllm.layers.norm import Norm
from flashllm.layers.rope import RopeTable


@dataclasses.dataclass(frozen=True)
class Attention:
    """One layer's attention, `heads` queries on the cache's heads (Ainslie et al., 2023)."""

    layer: int
    heads: int
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    scoring: Scoring
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    rope: RopeTable | None = None

    def record(self, program: Program, s: StepBuffers, out: Floats, *, accumulate: bool) -> None:
        """out (+)= attention of s.attention_in."""
        inputs = (self.query, self.key, self.value)
        if {linear.weight.dtype for linear in inputs} & QUANTIZED:
            program.quantize(s.attention_in)
        self.query.record(program, s.attention_in, s.queries)
        self.key.record(program, s.attention_in, s.keys, parallel=True)
        self.value.record(program, s.attention_in, s.values, parallel=True)
        if self.query_norm and self.key_norm:
            self.query_norm.record(program, s.queries, s.queries)
            self.key_norm.record(program, s.keys, s.keys, parallel=True)
        if self.rope:
            self.rope.record(program, s.queries, self.heads, s.kv.head_dim)
            self.rope.record(program, s.keys, s.kv.kv_heads, s.kv.head_dim, parallel=True)
        program.write_kv(s.keys, s.values, self.layer, s.positions, s.kv)
        program.attend(
            s.queries,
            self.heads,
            self.scoring,
            self.layer,
            s.positions,
            s.kv,
            s.attended.values,
        )
        if self.out.weight.dtype in QUANTIZED:
            program.quantize(s.attended)
        self.out.record(program, s.attended, out, accumulate=accumulate)
