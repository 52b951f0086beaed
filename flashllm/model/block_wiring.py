"""How the blocks of layers are made: from a config and the parts of a flash model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.format import FlashModel, MatrixPart, read_small
from flashllm.flash.parts import FFNPart, Part
from flashllm.kernels.weights import (
    Floats,
    Nonlinearity,
    RowFFN,
    Scoring,
    TileFFN,
    TileMatrix,
)
from flashllm.layers.attention import Attention
from flashllm.layers.block import Block
from flashllm.layers.ffn import FeedForward
from flashllm.layers.linear import Linear
from flashllm.layers.norm import Norm
from flashllm.layers.rope import RopeTable
from flashllm.model.config import ModelConfig
from flashllm.model.roles import roles
from flashllm.model.specs import NormSpec


class UnitTables(Protocol):
    """Whoever knows where units are: the part of cache.Units that blocks need."""

    def table(self, group: str, first: int, count: int) -> NDArray[np.int64]: ...
    def watch(self, group: str, on_change: Callable[[int, int], None]) -> None: ...


class BlockWiring:
    """Makes the blocks of one model for steps of up to `capacity` tokens.

    What the config says is taken from roles(config); a role that it lacks is a part left out.
    vectors: norms and biases by role; ropes: tables of positions, to be made ready for each step.
    """

    def __init__(self, model: FlashModel, config: ModelConfig, units: UnitTables, capacity: int):
        """Raises CorruptModel for a vector that is missing or of another shape."""
        self._model = model
        self._config = config
        self._units = units
        self._shapes = roles(config)
        self.vectors = self._read_vectors()
        specs = {config.kind_of(i).rope for i in range(config.n_layers)}
        self._ropes = {
            spec: RopeTable(config.context_length, capacity, **dataclasses.asdict(spec))
            for spec in specs
            if spec
        }

    @property
    def ropes(self) -> list[RopeTable]:
        """The tables of positions that blocks use."""
        return list(self._ropes.values())

    def block(self, i: int) -> Block:
        """Layer i. Raises CorruptModel, UnsupportedModel."""
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
        norm = self.needed_norm(role, qk_norm.norm)
        if qk_norm.span == "joint":
            return norm
        times = heads if qk_norm.span == "shared" else 1
        return dataclasses.replace(
            norm,
            weight=np.tile(norm.weight, times),
            bias=None if norm.bias is None else np.tile(norm.bias, times),
            groups=heads,
        )

    def ffn_part(self, i: int) -> FFNPart:
        """The units of layer i's feed-forward. Raises CorruptModel."""
        c, group = self._config, f"layers.{i}.ffn"
        part = self.part(group, "ffn")
        expected = (c.ffn.size, c.hidden_size, c.ffn.gated)
        if not isinstance(part, FFNPart) or expected != (
            part.neurons,
            part.width,
            part.gate_dtype is not None,
        ):
            raise self.wrong(group, part)
        return part

    def _ffn(self, i: int) -> FeedForward:
        c, group, part = self._config, f"layers.{i}.ffn", self.ffn_part(i)
        table = self._units.table(group, part.first_unit, part.units)
        return FeedForward(
            self._row_ffn(group, part, table) if part.codec == "row" else _tile_ffn(part, table),
            Nonlinearity(c.ffn.activation, c.ffn.threshold, c.ffn.up_activation == "relu"),
            gate_bias=self.vectors.get(f"layers.{i}.ffn_gate_bias"),
            up_bias=self.vectors.get(f"layers.{i}.ffn_up_bias"),
            down_bias=self.vectors.get(f"layers.{i}.ffn_down_bias"),
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

    def _linear(self, i: int, role: str) -> Linear:
        bias = self.vectors.get(f"layers.{i}.{role}_bias")
        return Linear(self.matrix(f"layers.{i}.attn", role, f"layers.{i}.{role}"), bias)

    def matrix(self, group: str, part_role: str, role: str | None = None) -> TileMatrix:
        """A matrix; role: what the config calls it, if not as the part. Raises CorruptModel."""
        part = self.part(group, part_role)
        shape = self._shapes[role or part_role]
        if not isinstance(part, MatrixPart) or (part.rows, part.cols) != shape:
            raise self.wrong(f"{group}/{part_role}", part)
        table = self._units.table(group, part.first_unit, part.units)
        sizes = (part.rows, part.cols, part.panels_per_unit)
        return TileMatrix(part.dtype, *sizes, table, bitmap=part.codec == "bitmap")

    def part(self, group: str, role: str) -> Part:
        """A part of a group. Raises CorruptModel."""
        return self._model.group(group).part(role)

    def _norm(self, role: str, spec: NormSpec) -> Norm | None:
        return self.needed_norm(role, spec) if role in self._shapes else None

    def needed_norm(self, role: str, spec: NormSpec) -> Norm:
        """The norm of this role."""
        bias = self.vectors.get(f"{role}_bias")
        return Norm(spec.kind, spec.eps, self.vectors[role], bias)

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

    def wrong(self, what: str, part: Part) -> CorruptModel:
        """What to raise for a part of another shape."""
        return CorruptModel(
            f"{self._model.path}: {what} does not have the shape that the config says ({part}); "
            "convert the model again"
        )


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
