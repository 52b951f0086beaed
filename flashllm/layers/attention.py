"""The attention block: norm, projections, rotary positions, the cache, and the way back."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import QUANTIZED, Floats, TileMatrix
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.rope import RopeTable


@dataclasses.dataclass(frozen=True)
class Attention:
    """One layer's grouped-query attention with rotary positions (Ainslie et al., 2023)."""

    layer: int
    heads: int
    norm: Floats
    norm_eps: float
    query: TileMatrix
    key: TileMatrix
    value: TileMatrix
    out: TileMatrix
    rope: RopeTable
    rope_style: str

    def record(self, program: Program, s: StepBuffers) -> None:
        """x += out(attention(norm(x)))."""
        program.rms_norm(s.x, self.norm, self.norm_eps, s.attention_in.values)
        if {self.query.dtype, self.key.dtype, self.value.dtype} & QUANTIZED:
            program.quantize(s.attention_in)
        program.matmul(s.attention_in, self.query, s.queries)
        program.matmul(s.attention_in, self.key, s.keys, parallel=True)
        program.matmul(s.attention_in, self.value, s.values, parallel=True)
        tables = (s.positions, self.rope.cos, self.rope.sin, self.rope_style)
        program.rope(s.queries, self.heads, *tables)
        program.rope(s.keys, s.kv.kv_heads, *tables, parallel=True)
        program.write_kv(s.keys, s.values, self.layer, s.positions, s.kv)
        scale = s.kv.head_dim**-0.5
        values = s.attended.values
        program.attend(s.queries, self.heads, scale, self.layer, s.positions, s.kv, values)
        if self.out.dtype in QUANTIZED:
            program.quantize(s.attended)
        program.matmul(s.attended, self.out, s.x, accumulate=True)
