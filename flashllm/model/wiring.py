"""How each layer is made: from a config and the parts of a flash model to a decoder."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm import kernels
from flashllm.cache.policy import LOOKUP_SLOTS, Span
from flashllm.cache.units import Units
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.format import FlashModel, MatrixPart, read_small
from flashllm.flash.parts import FFNPart, Part
from flashllm.kernels.weights import (
    TILE_ROWS,
    Floats,
    Nonlinearity,
    RowFFN,
    Scoring,
    TileFFN,
    TileMatrix,
)
from flashllm.layers.attention import Attention
from flashllm.layers.block import Block
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.ffn import FeedForward
from flashllm.layers.head import Embedding, Head, RowTable
from flashllm.layers.linear import Linear
from flashllm.layers.norm import Norm
from flashllm.layers.rope import RopeTable
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.ffn_parts import neurons_per_unit
from flashllm.model.layering import Layering
from flashllm.model.memory import LOGIT_ROWS
from flashllm.model.roles import roles
from flashllm.model.scan import layer_stages, neurons_at_once
from flashllm.model.sparse_wiring import SparseWiring
from flashllm.model.specs import NormSpec


class Wiring:
    """Makes the layers of one model for steps of up to `capacity` tokens.

    What the config says is taken from roles(config); a role that it lacks is a part left out.
    """

    def __init__(
        self,
        model: FlashModel,
        config: ModelConfig,
        backend: kernels.Backend,
        units: Units,
        kv_dtype: np.dtype[Any],
        capacity: int,
        sparse: str | None = None,
    ):
        """Raises CorruptModel for a vector that is missing or of another shape."""
        self._model = model
        self._config = config
        self._backend = backend
        self._units = units
        self._kv_dtype = kv_dtype
        self._capacity = capacity
        self._sparse = sparse
        self._shapes = roles(config)
        self._vectors = self._read_vectors()
        specs = {config.kind_of(i).rope for i in range(config.n_layers)}
        self._ropes = {
            spec: RopeTable(config.context_length, capacity, **dataclasses.asdict(spec))
            for spec in specs
            if spec
        }

    def decoder(self, budget: int | None, scratch: int) -> Decoder:
        """The decoder, for a process of `budget` bytes, of which its buffers take `scratch`.

        Raises CorruptModel, UnsupportedModel.
        """
        c, scan = self._config, self._units.residency.scan
        blocks = [self._block(i) for i in range(c.n_layers)]
        buffers = StepBuffers(
            self._capacity,
            hidden=c.hidden_size,
            heads=c.attention.heads,
            kv_heads=c.attention.kv_heads,
            head_dim=c.attention.head_dim,
            neurons=neurons_at_once(scan, neurons_per_unit(self._model.parts)),
            kv_dtype=self._kv_dtype,
        )
        layering = Layering(scan, self._backend.program, buffers)
        stages = layer_stages(scan, c.n_layers)
        sparse = self._sparse and SparseWiring(
            self._sparse, self._model, self._units, self._vectors, layering
        )
        layers = []
        for i, block in enumerate(blocks):
            part = self._ffn_part(i)
            path = sparse.path(i, block, stages[i].attention, part) if sparse else None
            layers.append(layering.layer(i, block, stages[i], part, path))
        return Decoder(
            c,
            self._backend,
            self._units,
            buffers,
            list(self._ropes.values()),
            self._embedding(),
            layers,
            stages,
            self._head(stages[-1].ffn[-1] + 1),
            budget=budget,
            scratch=scratch,
            sparse=layering.counts if sparse else None,
        )

    # ------------------------------------------------------------ both ends

    def _embedding(self) -> Embedding:
        c = self._config
        return Embedding(
            self._backend.program(LOOKUP_SLOTS),
            self._row_table("embed"),
            self._row_table("positions") if c.learned_positions else None,
            c.embed_scale,
        )

    def _row_table(self, group: str) -> RowTable:
        if self._part(group, group).codec != "tile":
            raise self._wrong(group, self._part(group, group))
        weight = dataclasses.replace(self._matrix(group, group), table=self._units.row_table(group))
        return RowTable(weight, functools.partial(self._units.look_up, group))

    def _head(self, first_stage: int) -> Head:
        c = self._config
        group = "embed" if c.tied_head else "output"
        whole = self._matrix(group, group)
        return Head(
            lambda: self._backend.program(min(self._capacity, LOGIT_ROWS)),
            _scaled(self._needed_norm("output_norm", c.norm), c.logit_scale),
            [_piece(whole, stage[0]) for stage in self._units.residency.scan.stages[first_stage:]],
            c.logit_soft_cap,
            self._units,
            first_stage,
        )

    # ------------------------------------------------------------ layers

    def _block(self, i: int) -> Block:
        c, prefix = self._config, f"layers.{i}."
        attention_norm = self._norm(f"{prefix}attn_norm", c.norm)
        own_norm = self._norm(f"{prefix}ffn_norm", c.norm)
        return Block(
            attention=self._attention(i),
            ffn=self._ffn(i),
            attention_norm=attention_norm,
            ffn_norm=attention_norm if c.block.shared_norm else own_norm,
            attention_post_norm=self._norm(f"{prefix}attn_post_norm", c.norm),
            ffn_post_norm=self._norm(f"{prefix}ffn_post_norm", c.norm),
            parallel=c.block.parallel,
        )

    def _attention(self, i: int) -> Attention:
        a, kind = self._config.attention, self._config.kind_of(i)
        return Attention(
            layer=i,
            heads=a.heads,
            query=self._linear(i, "attn_q"),
            key=self._linear(i, "attn_k"),
            value=self._linear(i, "attn_v"),
            out=self._linear(i, "attn_out"),
            scoring=Scoring(a.scale, kind.window, a.soft_cap, a.alibi),
            query_norm=self._head_norm(f"layers.{i}.attn_q_norm", a.heads),
            key_norm=self._head_norm(f"layers.{i}.attn_k_norm", a.kv_heads),
            rope=self._ropes[kind.rope] if kind.rope else None,
        )

    def _head_norm(self, role: str, heads: int) -> Norm | None:
        """A norm of queries or keys: of each head by itself, or of all as one vector."""
        qk_norm = self._config.attention.qk_norm
        if qk_norm is None:
            return None
        norm = self._needed_norm(role, qk_norm.norm)
        if qk_norm.span == "joint":
            return norm
        times = heads if qk_norm.span == "shared" else 1
        return dataclasses.replace(
            norm,
            weight=np.tile(norm.weight, times),
            bias=None if norm.bias is None else np.tile(norm.bias, times),
            groups=heads,
        )

    def _ffn_part(self, i: int) -> FFNPart:
        c, group = self._config, f"layers.{i}.ffn"
        part = self._part(group, "ffn")
        expected = (c.ffn.size, c.hidden_size, c.ffn.gated)
        if not isinstance(part, FFNPart) or expected != (
            part.neurons,
            part.width,
            part.gate_dtype is not None,
        ):
            raise self._wrong(group, part)
        return part

    def _ffn(self, i: int) -> FeedForward:
        c, group, part = self._config, f"layers.{i}.ffn", self._ffn_part(i)
        table = self._units.table(group, part.first_unit, part.units)
        return FeedForward(
            self._row_ffn(group, part, table) if part.codec == "row" else _tile_ffn(part, table),
            Nonlinearity(c.ffn.activation, c.ffn.threshold, c.ffn.up_activation == "relu"),
            gate_bias=self._vectors.get(f"layers.{i}.ffn_gate_bias"),
            up_bias=self._vectors.get(f"layers.{i}.ffn_up_bias"),
            down_bias=self._vectors.get(f"layers.{i}.ffn_down_bias"),
        )

    def _row_ffn(self, group: str, part: FFNPart, table: NDArray[np.int64]) -> RowFFN:
        """Every neuron of the layer, in the order of their ids."""
        if len(set(part.dtypes)) > 1:
            raise UnsupportedModel(
                "a neuron's gate, up and down differ in dtype; convert with --dtype"
            )
        unit, within = np.divmod(np.arange(part.neurons), part.neurons_per_unit)
        offsets = within * part.grain_bytes
        addresses = np.empty(part.neurons, np.int64)
        per_unit = part.neurons_per_unit

        def follow(first: int, count: int) -> None:
            span = slice(first * per_unit, (first + count) * per_unit)
            np.add(table[unit[span]], offsets[span], out=addresses[span])

        self._units.watch(group, follow)
        return RowFFN(part.up_dtype, part.width, addresses, part.gate_dtype is not None)

    # ------------------------------------------------------------ weights

    def _linear(self, i: int, role: str) -> Linear:
        bias = self._vectors.get(f"layers.{i}.{role}_bias")
        return Linear(self._matrix(f"layers.{i}.attn", role, f"layers.{i}.{role}"), bias)

    def _matrix(self, group: str, part_role: str, role: str | None = None) -> TileMatrix:
        part = self._part(group, part_role)
        shape = self._shapes[role or part_role]
        if not isinstance(part, MatrixPart) or (part.rows, part.cols) != shape:
            raise self._wrong(f"{group}/{part_role}", part)
        table = self._units.table(group, part.first_unit, part.units)
        sizes = (part.rows, part.cols, part.panels_per_unit)
        return TileMatrix(part.dtype, *sizes, table, bitmap=part.codec == "bitmap")

    def _part(self, group: str, role: str) -> Part:
        return self._model.group(group).part(role)

    def _norm(self, role: str, spec: NormSpec) -> Norm | None:
        return self._needed_norm(role, spec) if role in self._shapes else None

    def _needed_norm(self, role: str, spec: NormSpec) -> Norm:
        bias = self._vectors.get(f"{role}_bias")
        return Norm(spec.kind, spec.eps, self._vectors[role], bias)

    def _read_vectors(self) -> dict[str, Floats]:
        """Every vector that the config asks for, by role."""
        found = read_small(self._model.path)
        wanted = {role: shape for role, shape in self._shapes.items() if len(shape) == 1}
        for role, shape in wanted.items():
            if role not in found or found[role].shape != shape:
                is_now = list(found[role].shape) if role in found else "missing"
                raise CorruptModel(
                    f"{self._model.path}: vector {role!r} is {is_now}, expected {list(shape)}; "
                    "convert the model again"
                )
        predictors = {name for name in found if name.endswith(".predictor_bias")}
        return {role: found[role] for role in (*wanted, *predictors)}

    def _wrong(self, what: str, part: Part) -> CorruptModel:
        return CorruptModel(
            f"{self._model.path}: {what} does not have the shape that the config says ({part}); "
            "convert the model again"
        )


def _scaled(norm: Norm, scale: float) -> Norm:
    """The norm that gives `scale` times as much."""
    factor = np.float32(scale)
    bias = None if norm.bias is None else norm.bias * factor
    return dataclasses.replace(norm, weight=norm.weight * factor, bias=bias)


def _tile_ffn(part: FFNPart, table: NDArray[np.int64]) -> TileFFN:
    gated = part.gate_dtype is not None
    if gated and part.gate_dtype != part.up_dtype:
        raise UnsupportedModel(
            f"gate is {part.gate_dtype} and up is {part.up_dtype}; convert with one --dtype"
        )
    return TileFFN(
        part.up_dtype,
        part.down_dtype,
        part.width,
        part.neurons,
        part.blocks_per_unit,
        table,
        gated,
        bitmap=part.codec == "bitmap",
    )


def _piece(whole: TileMatrix, span: Span) -> TileMatrix:
    """The rows of a matrix that a span of its units holds."""
    rows_per_unit = TILE_ROWS * whole.panels_per_unit
    first, end = span.first * rows_per_unit, (span.first + span.units) * rows_per_unit
    table = whole.table[span.first : span.first + span.units]
    return dataclasses.replace(whole, rows=min(end, whole.rows) - first, table=table)
