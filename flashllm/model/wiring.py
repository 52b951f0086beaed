"""How each layer is made: from a config and the parts of a flash model to a decoder."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from flashllm import kernels
from flashllm.cache.policy import LOOKUP_SLOTS, Span
from flashllm.cache.units import Units
from flashllm.flash.format import FlashModel
from flashllm.kernels.weights import (
    TILE_ROWS,
    TileMatrix,
)
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.head import Embedding, Head, RowTable
from flashllm.layers.norm import Norm
from flashllm.model.block_wiring import BlockWiring
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.ffn_parts import neurons_per_unit
from flashllm.model.layering import Layering
from flashllm.model.memory import LOGIT_ROWS
from flashllm.model.scan import layer_stages, neurons_at_once
from flashllm.model.sparse_wiring import SparseWiring


class Wiring:
    """Makes the decoder of one model for steps of up to `capacity` tokens."""

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
        self._blocks = BlockWiring(model, config, units, capacity)

    def decoder(self, budget: int | None, scratch: int) -> Decoder:
        """The decoder, for a process of `budget` bytes, of which its buffers take `scratch`.

        Raises CorruptModel, UnsupportedModel.
        """
        c, scan = self._config, self._units.residency.scan
        blocks = [self._blocks.block(i) for i in range(c.n_layers)]
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
            self._sparse, self._model, self._units, self._blocks.vectors, layering
        )
        layers = []
        for i, block in enumerate(blocks):
            part = self._blocks.ffn_part(i)
            path = sparse.path(i, block, stages[i].attention, part) if sparse else None
            layers.append(layering.layer(i, block, stages[i], part, path))
        return Decoder(
            c,
            self._backend,
            self._units,
            buffers,
            self._blocks.ropes,
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
        part, whole = self._blocks.part(group, group), self._blocks.matrix(group, group)
        if part.codec != "tile":
            raise self._blocks.wrong(group, part)
        weight = dataclasses.replace(whole, table=self._units.row_table(group))
        return RowTable(weight, functools.partial(self._units.look_up, group))

    def _head(self, first_stage: int) -> Head:
        c = self._config
        group = "embed" if c.tied_head else "output"
        whole = self._blocks.matrix(group, group)
        return Head(
            lambda: self._backend.program(min(self._capacity, LOGIT_ROWS)),
            _scaled(self._blocks.needed_norm("output_norm", c.norm), c.logit_scale),
            [_piece(whole, stage[0]) for stage in self._units.residency.scan.stages[first_stage:]],
            c.logit_soft_cap,
            self._units,
            first_stage,
        )


def _scaled(norm: Norm, scale: float) -> Norm:
    """The norm that gives `scale` times as much."""
    factor = np.float32(scale)
    bias = None if norm.bias is None else norm.bias * factor
    return dataclasses.replace(norm, weight=norm.weight * factor, bias=bias)


def _piece(whole: TileMatrix, span: Span) -> TileMatrix:
    """The rows of a matrix that a span of its units holds."""
    rows_per_unit = TILE_ROWS * whole.panels_per_unit
    first, end = span.first * rows_per_unit, (span.first + span.units) * rows_per_unit
    table = whole.table[span.first : span.first + span.units]
    return dataclasses.replace(whole, rows=min(end, whole.rows) - first, table=table)
