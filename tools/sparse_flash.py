"""Flash models of codec `row` with planted statistics and predictors, as fast as the disk.

sparse_weights.py says what their weights are.
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
from sparse_planting import PlantedLayer, widened
from sparse_weights import RECORDS, Floats, Plan, Planting, as_tiles
from synthetic_flash import JOB_BYTES, ROOM, tokenizer_files
from synthetic_weights import TILE_ROWS, Bytes

from flashllm import machine
from flashllm.convert.conversion import created_by
from flashllm.convert.dtypes import matrix_dtypes
from flashllm.convert.pipeline import Job, run_ordered
from flashllm.convert.plan import plan_groups, predictor_plan
from flashllm.flash.codecs import pack_matrix, pack_rows
from flashllm.flash.layout import row_bytes
from flashllm.flash.manifest import SMALL_FILE, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import Quantized
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.flash.writer import ModelWriter

Jobs = Iterator[Job[list[Bytes]]]


def write_sparse(folder: Path, planting: Planting) -> Iterator[int]:
    """Write the model; yields the bytes of each group."""
    plan = planting.plan
    config = planting.config
    dtypes = matrix_dtypes(planting.source, plan.dtype, "row")
    plans = plan_groups(config, dtypes, "row")
    plans += [
        predictor_plan(i, rank, config.hidden_size, config.ffn.size)
        for i, rank in enumerate(plan.ranks)
    ]
    with ModelWriter(folder) as writer:
        writer.check_room(units_bytes(plans))
        for name, data in tokenizer_files().items():
            writer.add_file(name, data)
        writer.begin(plans)
        jobs = _all_jobs(plans, planting)
        with contextlib.closing(run_ordered(jobs, machine.cpu().usable_cores, ROOM)) as stream:
            made = (unit for units in stream for unit in units)
            for group in plans:
                writer.add_group(made)
                yield group.nbytes
        layers = [planting.layer(i) for i in range(config.n_layers)]
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


def _all_jobs(plans: list[GroupPlan], planting: Planting) -> Jobs:
    """What makes all units, in their order.

    A layer is planted by a job before those of the layer before it, so that threads share both.
    """
    layers = planting.config.n_layers

    def planted(i: int) -> list[Bytes]:
        planting.plant(i)
        return []

    yield Job(0, functools.partial(planted, 0))
    for group in plans:
        kind = group.name.rpartition(".")[2]
        if kind == "ffn":
            following = _layer_of(group) + 1
            if following < layers:
                yield Job(0, functools.partial(planted, following))
        yield from _jobs(group, kind, planting)


def _jobs(group: GroupPlan, kind: str, planting: Planting) -> Jobs:
    """What makes the units of a group, in their order."""
    if kind == "predictor":
        yield Job(group.nbytes, functools.partial(_predictor_units, planting, group))
        return
    for part in group.parts:
        if isinstance(part, FFNPart):
            yield from _ffn_jobs(part, planting, _layer_of(group))
            continue
        per_unit = int(part.lengths()[0])
        step = max(1, JOB_BYTES // per_unit)
        make = _attention_units if kind == "attn" else _table_units
        for first in range(0, part.units, step):
            count = min(step, part.units - first)
            run = functools.partial(make, planting, group.name, part, first, count)
            yield Job(count * per_unit, run)


def _ffn_jobs(part: FFNPart, planting: Planting, layer: int) -> Jobs:
    per_unit = part.neurons_per_unit
    step = per_unit * max(1, JOB_BYTES // (per_unit * part.grain_bytes))
    for first in range(0, part.neurons, step):
        count = min(step, part.neurons - first)
        run = functools.partial(_neuron_units, planting, part, layer, first, count)
        yield Job(count * part.grain_bytes, run)


def _neuron_units(
    planting: Planting, part: FFNPart, layer: int, first: int, count: int
) -> list[Bytes]:
    """Units of neurons: the row that fires (of gate, or of up where there is none) is planted."""
    width = row_bytes(part.up_dtype, part.width)
    records = np.empty((count, len(part.dtypes), width), np.uint8)
    some = _rows_of(planting.layer(layer).rows, first, count)
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
    tiles = as_tiles(values, part.dtype)
    panels = range(0, len(tiles), part.panels_per_unit)
    return [tiles[i : i + part.panels_per_unit].reshape(-1) for i in panels]


def _predictor_units(planting: Planting, group: GroupPlan) -> list[Bytes]:
    down, up = group.parts
    assert isinstance(down, MatrixPart) and isinstance(up, MatrixPart)
    matrices = planting.layer(_layer_of(group)).predictor(down.rows, down.cols)
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


def _layer_of(group: GroupPlan) -> int:
    """The number of the layer that a group belongs to."""
    return int(group.name.split(".")[1])


def _rows_of(matrix: Quantized, first: int, count: int) -> Quantized:
    """Rows of a matrix without minimums."""
    some = slice(first, first + count)
    scales = None if matrix.scales is None else matrix.scales[some]
    return Quantized(matrix.dtype, matrix.codes[some], scales)
