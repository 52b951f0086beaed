"""Flash models of codec `row` with planted statistics and predictors, as fast as the disk.

What decides which neurons fire is planted (sparse_planting.py): the embedding's reserved dimensions
and the rows that fire. All else is random, from one block of weights: attention, what else a gated
neuron reads, and what neurons write. Nothing but the embedding writes to the reserved dimensions,
and the embedding is so large that the norms' scale hardly moves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from sparse_planting import (
    CARRIER,
    CODE,
    RESERVED,
    PlantedLayer,
    Statistics,
    plant,
    token_codes,
    widened,
)
from synthetic_flash import ROOM, tokenizer_files
from synthetic_shapes import Model
from synthetic_weights import TILE_COLS, TILE_ROWS, Bytes, Weights, checkpoint

from flashllm import machine
from flashllm.convert.conversion import created_by
from flashllm.convert.dtypes import matrix_dtypes
from flashllm.convert.pipeline import Job, run_ordered
from flashllm.convert.plan import plan_groups, predictor_plan
from flashllm.convert.source import Source, understand
from flashllm.flash.codecs import pack_matrix, pack_rows, pack_tiles, unpack_tiles
from flashllm.flash.layout import row_bytes
from flashllm.flash.manifest import SMALL_FILE, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import PLAIN, Quantized, quantize, search_starts
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.flash.writer import ModelWriter
from flashllm.kernels.quantizing import quantize_into, tiles_for

Floats = NDArray[np.float32]
Jobs = Iterator[Job[list[Bytes]]]

JOB_BYTES = 4 << 20
SCALE = 100.0
"""Root mean square of a token's vector. What layers add to it is about 1 to each element."""
POSITION = 5.0
"""The same of a learned position."""
RECORDS = 2048
"""Random rows that neurons take in turns."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sparse model to be written: its shape, what is planted, and the rank of each predictor.

    shares: of co-activation along the neurons, None for independent ones.
    """

    model: Model
    dtype: str
    wanted: Statistics
    ranks: tuple[int, ...]
    shares: NDArray[np.float64] | None
    seed: int


class Planting:
    """The weights of a planted model."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.source: Source = understand(checkpoint(plan.model.config, plan.model.listed()))
        self.config = self.source.config
        self._weights = Weights(plan.seed)
        rng = np.random.default_rng([plan.seed, 0])
        self.codes = token_codes(self.config.vocab_size, plan.wanted.reuse, rng)

    def layer(self, i: int) -> PlantedLayer:
        """Layer i's neurons; each call plants them anew, the same."""
        plan, rng = self.plan, np.random.default_rng([self.plan.seed, 1 + i])
        size = self.config.ffn.size
        return plant(size, plan.dtype, self.codes, plan.wanted, plan.shares, rng)

    def embedding(self, first: int, count: int) -> Floats:
        """Vectors of tokens, of mean 0 and root mean square SCALE: float32 [count, hidden]."""
        hidden = self.config.hidden_size
        out = np.zeros((count, hidden), np.float32)
        out[:, :CODE] = self.codes[first : first + count]
        out[:, CARRIER] = 1
        rest = self._rest("embed", first, count)
        mean = -(out.sum(1, keepdims=True)) / rest.shape[1]
        room = hidden - CODE - 1 - rest.shape[1] * mean**2
        rest *= np.sqrt(room / np.square(rest).sum(1, keepdims=True))
        out[:, RESERVED:] = rest + mean
        return out * np.float32(SCALE)

    def positions(self, first: int, count: int) -> Floats:
        """Vectors of learned positions, of mean 0: float32 [count, hidden]."""
        out = np.zeros((count, self.config.hidden_size), np.float32)
        rest = self._rest("positions", first, count)
        out[:, RESERVED:] = rest * np.float32(POSITION / rest.std())
        return out

    def output(self, first: int, count: int) -> Floats:
        """Rows of an output matrix of its own: each is the vector of the token before it.

        So the likeliest token is the one after the last, and greedy decoding counts up.
        """
        before = self.embedding(max(first - 1, 0), count if first else count - 1)
        if first:
            return before
        last = self.embedding(self.config.vocab_size - 1, 1)
        return np.concatenate([last, before])

    def tiles(self, role: str, part: MatrixPart, unit: int) -> Bytes:
        """A unit of a matrix of attention; what is written to reserved dimensions is zero."""
        width = -(-part.cols // TILE_COLS)
        first, end = (
            unit * part.panels_per_unit,
            min((unit + 1) * part.panels_per_unit, part.panels),
        )
        tiles = self._weights.tiles(
            role, part.cols, part.dtype, np.arange(first * width, end * width)
        )
        zeros = RESERVED // TILE_ROWS - first
        if part.role == "attn_out" and zeros > 0:
            none = quantize(np.zeros((TILE_ROWS, TILE_COLS), np.float32), part.dtype)
            tiles[: zeros * width] = pack_tiles(none, 1, 1)[0]
        return tiles.reshape(-1)

    @functools.cached_property
    def outputs(self) -> Bytes:
        """What neurons write: uint8 [RECORDS, bytes], columns of down as codec `row` has them."""
        values = self._block("down")
        values[:, :RESERVED] = 0
        return _packed_rows(values, self.plan.dtype)

    @functools.cached_property
    def inputs(self) -> Bytes:
        """What gated neurons read beside the gate: uint8 [RECORDS, bytes], rows of up."""
        return _packed_rows(self._block("up"), self.plan.dtype)

    def _rest(self, name: str, first: int, count: int) -> Floats:
        """Random values for the dimensions that are not reserved, of mean 0 in each row."""
        hidden = self.config.hidden_size
        rows = self._weights.rows(name, hidden, "f16", first, count)
        values = rows.view(np.float16)[:, RESERVED:].astype(np.float32)
        return values - values.mean(1, keepdims=True)

    def _block(self, name: str) -> Floats:
        rows = self._weights.rows(name, self.config.hidden_size, "f16", 0, RECORDS)
        return rows.view(np.float16).astype(np.float32)


def write_sparse(folder: Path, plan: Plan) -> Iterator[tuple[int, PlantedLayer | None]]:
    """Write the model; yields the bytes of each group and the layer whose neurons it holds."""
    planting = Planting(plan)
    config = planting.config
    dtypes = matrix_dtypes(planting.source, plan.dtype, "row")
    plans = plan_groups(config, dtypes, "row")
    plans += [
        predictor_plan(i, rank, config.hidden_size, config.ffn.size)
        for i, rank in enumerate(plan.ranks)
    ]
    layers: list[PlantedLayer] = []
    with ModelWriter(folder) as writer:
        writer.check_room(units_bytes(plans))
        for name, data in tokenizer_files().items():
            writer.add_file(name, data)
        writer.begin(plans)
        jobs = (job for group in plans for job in _jobs(group, planting, layers))
        with contextlib.closing(run_ordered(jobs, machine.cpu().usable_cores, ROOM)) as stream:
            made = (unit for units in stream for unit in units)
            for group in plans:
                writer.add_group(made)
                is_ffn = isinstance(group.parts[0], FFNPart)
                yield group.nbytes, layers[int(group.name.split(".")[1])] if is_ffn else None
        writer.add_file(SMALL_FILE, safetensors.numpy.save(_vectors(planting, layers)))
        writer.publish(
            Manifest(
                name=folder.name,
                created_by=created_by(),
                config=config.to_json(),
                codec="row",
                dtype=plan.dtype,
                groups=writer.groups,
                source=_provenance(plan),
                licence=None,
                loss=None,
                files=writer.files,
                sparsity=sparsity(layers, plan),
            )
        )


def sparsity(layers: list[PlantedLayer], plan: Plan) -> dict[str, Any]:
    """What the manifest says of the layers: the figures of the planting, none of a text."""
    figures = [layer.figures for layer in layers]
    return {
        "text_tokens": 0,
        "order": "none" if plan.shares is None else "coactivation",
        "layers": [
            {
                "rank": rank,
                "recall": each.recall,
                "false_positives": each.false_positives,
                "active": each.active,
                "predicted": each.predicted,
            }
            for rank, each in zip(plan.ranks, figures, strict=True)
        ],
        "window": np.mean([each.window for each in figures], axis=0).tolist(),
        "resident": np.mean([each.resident for each in figures], axis=0).tolist(),
    }


def _jobs(group: GroupPlan, planting: Planting, layers: list[PlantedLayer]) -> Jobs:
    """What makes the units of a group, in their order; a layer's neurons are planted on the way."""
    kind = group.name.rpartition(".")[2]
    if kind == "predictor":
        part = group.parts[1]
        assert isinstance(part, MatrixPart)
        layer = layers[int(group.name.split(".")[1])]
        yield Job(group.nbytes, functools.partial(_predictor_units, planting, layer, group))
        return
    for part in group.parts:
        if isinstance(part, FFNPart):
            layers.append(planting.layer(len(layers)))
            yield from _ffn_jobs(part, planting, layers[-1])
            continue
        per_unit = int(part.lengths()[0])
        step = max(1, JOB_BYTES // per_unit)
        make = _attention_units if kind == "attn" else _table_units
        for first in range(0, part.units, step):
            count = min(step, part.units - first)
            run = functools.partial(make, planting, group.name, part, first, count)
            yield Job(count * per_unit, run)


def _ffn_jobs(part: FFNPart, planting: Planting, layer: PlantedLayer) -> Jobs:
    per_unit = part.neurons_per_unit
    step = per_unit * max(1, JOB_BYTES // (per_unit * part.grain_bytes))
    for first in range(0, part.neurons, step):
        count = min(step, part.neurons - first)
        run = functools.partial(_neuron_units, planting, part, layer, first, count)
        yield Job(count * part.grain_bytes, run)


def _neuron_units(
    planting: Planting, part: FFNPart, layer: PlantedLayer, first: int, count: int
) -> list[Bytes]:
    """Units of neurons: the row that fires (of gate, or of up where there is none) is planted."""
    width = row_bytes(part.up_dtype, part.width)
    records = np.empty((count, len(part.dtypes), width), np.uint8)
    some = _rows_of(layer.rows, first, count)
    records[:, 0] = pack_rows(widened(some, part.width))
    numbers = np.arange(first, first + count)
    if part.gate_dtype is not None:
        records[:, 1] = planting.inputs[numbers % RECORDS]
    records[:, -1] = planting.outputs[numbers % RECORDS]
    flat = records.reshape(count, -1)
    per_unit = part.neurons_per_unit
    return [flat[i : i + per_unit].reshape(-1) for i in range(0, count, per_unit)]


def _attention_units(
    planting: Planting, group: str, part: MatrixPart, first: int, count: int
) -> list[Bytes]:
    return [planting.tiles(f"{group}.{part.role}", part, i) for i in range(first, first + count)]


def _table_units(
    planting: Planting, group: str, part: MatrixPart, first: int, count: int
) -> list[Bytes]:
    """Units of the embedding, the learned positions or the output matrix."""
    make = {
        "embed": planting.embedding,
        "positions": planting.positions,
        "output": planting.output,
    }[group]
    rows = part.panels_per_unit * TILE_ROWS
    begin = first * rows
    values = make(begin, min(count * rows, part.rows - begin))
    tiles = _tiles(values, part.dtype)
    panels = range(0, len(tiles), part.panels_per_unit)
    return [tiles[i : i + part.panels_per_unit].reshape(-1) for i in panels]


def _predictor_units(planting: Planting, layer: PlantedLayer, group: GroupPlan) -> list[Bytes]:
    down, up = group.parts
    assert isinstance(down, MatrixPart) and isinstance(up, MatrixPart)
    matrices = layer.predictor(down.rows, down.cols)
    return [*pack_matrix(matrices[0], down), *pack_matrix(matrices[1], up)]


def _vectors(planting: Planting, layers: list[PlantedLayer]) -> dict[str, Floats]:
    """Norms that only normalise, biases of zero, and the predictors' biases, by role."""
    shapes = planting.source.shapes
    found = {
        role: np.full(shapes[role], role.endswith("_norm"), np.float32)
        for role in planting.source.vectors()
    }
    return found | {f"layers.{i}.predictor_bias": layer.bias for i, layer in enumerate(layers)}


def _provenance(plan: Plan) -> dict[str, Any]:
    config = json.dumps(plan.model.config).encode()
    return {
        "kind": "synthetic",
        "path": "synthetic",
        "format": "safetensors",
        "headers_sha256": hashlib.sha256(config).hexdigest(),
        "files": {},
        "planted": {**dataclasses.asdict(plan.wanted), "seed": plan.seed},
    }


def _tiles(values: Floats, dtype: str) -> Bytes:
    """Rows as tiles in a dtype: uint8 [panels, tiles, bytes]; whole tiles."""
    rows, cols = values.shape
    if dtype in PLAIN:
        return pack_tiles(quantize(values, dtype), rows // TILE_ROWS, cols // TILE_COLS)
    tiles = tiles_for(rows, cols, dtype)
    quantize_into(values, dtype, search_starts(dtype), tiles)
    return tiles


def _packed_rows(values: Floats, dtype: str) -> Bytes:
    """Rows as codec `row` has them: uint8 [rows, bytes]."""
    if dtype in PLAIN:
        return pack_rows(quantize(values, dtype))
    return pack_rows(unpack_tiles(_tiles(values, dtype), *values.shape, dtype))


def _rows_of(matrix: Quantized, first: int, count: int) -> Quantized:
    """Rows of a matrix without minimums."""
    some = slice(first, first + count)
    scales = None if matrix.scales is None else matrix.scales[some]
    return Quantized(matrix.dtype, matrix.codes[some], scales)
