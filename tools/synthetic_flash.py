"""Synthetic models as flash models, without a checkpoint in between.

Byte for byte the units that the conversion of the same model's Hugging Face folder makes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
import synthetic_tokenizer
from synthetic_shapes import Model
from synthetic_weights import TILE_COLS, Bytes, Reader, Weights, checkpoint

from flashllm import machine
from flashllm.convert.conversion import created_by
from flashllm.convert.dtypes import matrix_dtypes
from flashllm.convert.pipeline import Job, run_ordered
from flashllm.convert.plan import plan_groups
from flashllm.convert.source import Source, understand
from flashllm.convert.units import Made, group_jobs
from flashllm.convert.weights import Weights as Converted
from flashllm.flash.bitmaps import squeeze_unit
from flashllm.flash.codecs import join_tiles
from flashllm.flash.manifest import SMALL_FILE, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.flash.writer import ModelWriter
from flashllm.generate.tokenizer_hf import files_from_hf

ROOM = 64 << 20  # bytes of units that may wait to be written
JOB_BYTES = 4 << 20


def write_flash(
    folder: Path, model: Model, weights: Weights, dtype: str, codec: str, pure: bool, density: float
) -> Iterator[int]:
    """Write a flash model; yields the bytes of each group.

    In codec "row" a feed-forward network is converted as one of a checkpoint is: a neuron's record
    holds a column of down, whose groups the block does not have. density: the share of weights that
    is not zero, for codec "bitmap".
    """
    source = understand(checkpoint(model.config, model.listed()))
    dtypes = matrix_dtypes(source, dtype, codec, pure=pure)
    pruned = dict.fromkeys(dtypes, density) if codec == "bitmap" else {}
    plans = plan_groups(source.config, dtypes, "row" if codec == "row" else "tile", pruned)
    converted = Converted(source, Reader(weights), dtypes)
    with ModelWriter(folder) as writer:
        writer.check_room(units_bytes(plans))
        for name, data in tokenizer_files().items():
            writer.add_file(name, data)
        vectors = {role: converted.vector(role) for role in source.vectors()}
        writer.add_file(SMALL_FILE, safetensors.numpy.save(vectors))
        jobs = (job for plan in plans for job in plan_jobs(plan, source, weights, converted))
        writer.begin(plans)
        with contextlib.closing(run_ordered(jobs, machine.cpu().usable_cores, ROOM)) as stream:
            made = (unit for units in stream for unit in units)
            for plan in plans:
                writer.add_group(made)
                yield plan.nbytes
        writer.publish(
            Manifest(
                name=folder.name,
                created_by=created_by(),
                config=source.config.to_json(),
                codec=codec,
                dtype=dtype,
                groups=writer.groups,
                source={
                    "path": "synthetic",
                    "format": "safetensors",
                    "headers_sha256": hashlib.sha256(json.dumps(model.config).encode()).hexdigest(),
                    "files": {},
                },
                licence=None,
                loss=None,
                files=writer.files,
            )
        )


def tokenizer_files() -> dict[str, bytes]:
    """The tokeniser's files as flash models have them."""
    with tempfile.TemporaryDirectory() as folder:
        synthetic_tokenizer.write_hf(Path(folder))
        return files_from_hf(Path(folder))


def plan_jobs(
    plan: GroupPlan, source: Source, weights: Weights, converted: Converted
) -> Iterator[Job[list[Bytes]]]:
    """What makes the units of a group, in their order."""
    if any(part.codec == "row" for part in plan.parts):
        for job in group_jobs(converted, plan):
            yield Job(job.nbytes, functools.partial(converted_units, job))
        return
    prefix = plan.name.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    for part in plan.parts:
        roles = [part.role] if isinstance(part, MatrixPart) else ["ffn_gate", "ffn_up", "ffn_down"]
        names = [
            source.places[prefix + role][0].tensor.name
            for role in roles
            if prefix + role in source.places
        ]
        make = matrix_unit if isinstance(part, MatrixPart) else feed_forward_unit
        nbytes = int(part.lengths()[0])
        step = max(1, JOB_BYTES // nbytes)
        for first in range(0, part.units, step):
            numbers = range(first, min(first + step, part.units))
            run = functools.partial(some_units, make, weights, names, part, numbers)
            yield Job(len(numbers) * nbytes, run)


def converted_units(job: Job[Made]) -> list[Bytes]:
    """The units that a conversion's job makes."""
    return job.run().units


def some_units(
    make: Callable[..., Bytes],
    weights: Weights,
    names: list[str],
    part: Part,
    numbers: range,
) -> list[Bytes]:
    """The units of a part that have these numbers."""
    units = [(make(weights, names, part, number), number) for number in numbers]
    if part.codec == "bitmap":
        return [squeeze_unit(unit, part, number) for unit, number in units]
    return [unit for unit, _ in units]


def matrix_unit(weights: Weights, names: list[str], part: MatrixPart, unit: int) -> Bytes:
    """A unit of a matrix."""
    width = part.cols // TILE_COLS
    first, end = unit * part.panels_per_unit, min((unit + 1) * part.panels_per_unit, part.panels)
    numbers = np.arange(first * width, end * width)
    return weights.tiles(names[0], part.cols, part.dtype, numbers).reshape(-1)


def feed_forward_unit(weights: Weights, names: list[str], part: FFNPart, unit: int) -> Bytes:
    """A unit of a feed-forward network in codec `tile`; names: of gate, if there is one, up, down.

    Neurons are a multiple of 32, so that no unit is padded.
    """
    blocks, width = part.blocks_per_unit, part.width // TILE_COLS
    panels = np.arange(unit * 2 * blocks, (unit + 1) * 2 * blocks)
    numbers = panels[:, None] * width + np.arange(width)
    *inputs, down = zip(names, part.dtypes, strict=True)
    tiles = [weights.tiles(name, part.width, dtype, numbers) for name, dtype in inputs]
    across = np.arange(unit * blocks, (unit + 1) * blocks)
    numbers = np.arange(part.width // 16)[:, None] * (part.neurons // TILE_COLS) + across
    outputs = weights.tiles(down[0], part.neurons, down[1], numbers)
    return next(join_tiles(tiles, outputs, part))
