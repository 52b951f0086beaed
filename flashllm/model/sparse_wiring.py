"""How sparse models are made: what says which neurons fire, and who brings them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.brought import Brought
from flashllm.cache.policy import SPARSE_ROWS
from flashllm.cache.units import Units
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.format import FFNPart, FlashModel, MatrixPart
from flashllm.kernels.weights import Activations, Floats, RowFFN, TileMatrix, row_part_bytes
from flashllm.layers.block import Block
from flashllm.layers.firing import Exact, Firing, LowRank
from flashllm.layers.layer import SparsePath
from flashllm.model.config import ModelConfig
from flashllm.model.layering import Layering
from flashllm.model.scan import predictor_group

SILENT = ("relu", "relu2")
"""Activations that are 0 for most neurons."""


def check_sparse(model: FlashModel, config: ModelConfig, sparse: str) -> None:
    """Raise UnsupportedModel, saying what to do, unless the model can run sparse this way."""
    if config.ffn.activation not in SILENT:
        raise UnsupportedModel(
            f"{model.path}: its activation, {config.ffn.activation}, is hardly ever 0, so that all "
            "neurons are needed; run it without --sparse"
        )
    if model.manifest.codec != "row":
        raise UnsupportedModel(
            f"{model.path}: its neurons cannot be read one by one; convert the original with "
            "`flashllm convert --codec row`"
        )
    if sparse == "predictor" and predictor_group(0) not in model.groups:
        raise UnsupportedModel(
            f"{model.path}: has no predictors; make them with `flashllm calibrate`, or use "
            "--sparse gate"
        )


@dataclasses.dataclass(frozen=True)
class _GroupUnits:
    """The units of one group: a NeuronUnits."""

    units: Units
    group: str

    @property
    def they_pass(self) -> bool:
        return self.units.neurons_pass

    def prefetch(self, units: NDArray[np.int64]) -> None:
        self.units.prefetch(self.group, units)

    def bring(self, units: NDArray[np.int64], keep: NDArray[np.bool_] | None) -> Brought:
        return self.units.bring(self.group, units, keep)


class SparseWiring:
    """Makes the sparse paths of a model's layers, all in one way.

    vectors: of the model, by role, those of predictors included.
    """

    def __init__(
        self,
        sparse: str,
        model: FlashModel,
        units: Units,
        vectors: Mapping[str, Floats],
        layering: Layering,
    ):
        self._sparse = sparse
        self._model = model
        self._units = units
        self._vectors = vectors
        self._layering = layering

    def path(self, i: int, block: Block, stage: int, part: FFNPart) -> SparsePath:
        """Layer i's, with its attention in `stage`. Raises CorruptModel, UnsupportedModel."""
        weights = block.ffn.weights
        if not isinstance(weights, RowFFN):
            raise UnsupportedModel(f"{self._model.path}: layer {i} is not of codec row")
        firing = self._low_rank(i, part) if self._sparse == "predictor" else self._exact(i, block)
        units = _GroupUnits(self._units, f"layers.{i}.ffn")
        return self._layering.sparse_path(block, weights, stage, part, firing, units)

    def _low_rank(self, i: int, part: FFNPart) -> Firing:
        name = predictor_group(i)
        group, bias = self._model.group(name), self._vectors.get(f"{name}_bias")
        down, up = group.part("predictor_down"), group.part("predictor_up")
        if (
            not isinstance(down, MatrixPart)
            or not isinstance(up, MatrixPart)
            or (down.cols, up.cols, up.rows) != (part.width, down.rows, part.neurons)
            or bias is None
            or bias.shape != (part.neurons,)
        ):
            raise CorruptModel(
                f"{self._model.path}: {name} does not fit the layer; calibrate the model again"
            )
        room = Activations(SPARSE_ROWS, down.rows)
        return LowRank(self._matrix(name, down), self._matrix(name, up), bias, room)

    def _matrix(self, group: str, part: MatrixPart) -> TileMatrix:
        table = self._units.table(group, part.first_unit, part.units)
        shape = (part.rows, part.cols, part.panels_per_unit)
        return TileMatrix(part.dtype, *shape, table, bitmap=part.codec == "bitmap")

    def _exact(self, i: int, block: Block) -> Firing:
        group = self._model.group(f"layers.{i}.ffn")
        part = group.part("ffn")
        if not isinstance(part, FFNPart):
            raise CorruptModel(f"{self._model.path}: {group.name} is no feed-forward")
        row_bytes = row_part_bytes(part.up_dtype, part.width)
        table = self._units.gate_rows(group.name, part, row_bytes)
        bias = block.ffn.gate_bias if part.gate_dtype else block.ffn.up_bias
        rows = RowFFN(part.up_dtype, part.width, table, gated=False)
        return Exact(rows, block.ffn.activation.of_gate, bias)
