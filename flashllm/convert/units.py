"""Units made of a checkpoint's weights, as jobs: each reads some rows and makes whole units."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Iterator

import numpy as np

from flashllm.convert.loss import Lost
from flashllm.convert.pipeline import Job
from flashllm.convert.weights import Weights
from flashllm.errors import Cancelled
from flashllm.flash.bitmaps import squeeze_unit
from flashllm.flash.codecs import Bytes, join_tiles, pack_row_ffn, pack_tiles
from flashllm.flash.layout import GROUP, TILE_COLS, TILE_ROWS, ceil_div, tile_bytes
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import PLAIN, ZERO_CODE, Floats, Quantized, dequantize
from flashllm.flash.units_file import GroupPlan

JOB_WEIGHTS = 1 << 21
"""Weights of a job, about: 4 MiB of float16, a read as fast as the disk, 10 ms of work."""


@dataclasses.dataclass(frozen=True)
class Made:
    """Units in order (none if they come later), weights read, and what was lost, by role."""

    units: list[Bytes]
    weights: int
    lost: list[tuple[str, Lost]]


def group_jobs(weights: Weights, plan: GroupPlan) -> Iterator[Job[Made]]:
    """The jobs that make the units of a group."""
    prefix = plan.name.rpartition(".")[0]
    prefix = f"{prefix}." if prefix else ""
    for part in plan.parts:
        if isinstance(part, MatrixPart):
            yield from _matrix_jobs(weights, part, prefix + part.role)
        elif part.codec == "row":
            yield from _row_jobs(weights, part, prefix)
        else:
            yield from _tile_jobs(weights, part, prefix)


def group_weights(weights: Weights, plan: GroupPlan) -> int:
    """Weights that making the units of a group reads."""
    total = 0
    for part in plan.parts:
        if isinstance(part, MatrixPart):
            total += part.rows * part.cols
        else:
            total += len(part.dtypes) * part.neurons * part.width
    return total


def _matrix_jobs(weights: Weights, part: MatrixPart, role: str) -> Iterator[Job[Made]]:
    per_unit = part.panels_per_unit * TILE_ROWS
    step = per_unit * max(1, JOB_WEIGHTS // (per_unit * part.cols))

    def make(first: int) -> Made:
        count = min(step, part.rows - first)
        tiles, lost = weights.tiles(role, first, count)
        panels = range(0, len(tiles), part.panels_per_unit)
        units = [tiles[i : i + part.panels_per_unit].reshape(-1) for i in panels]
        units = [_stored(unit, part, i) for i, unit in enumerate(units, first // per_unit)]
        return Made(units, count * part.cols, [(role, lost)])

    for first in range(0, part.rows, step):
        count = ceil_div(min(step, part.rows - first), TILE_ROWS)
        nbytes = count * ceil_div(part.cols, TILE_COLS) * tile_bytes(part.dtype)
        yield _job(nbytes, make, first)


class _Whole:
    """Something that several jobs fill and later ones use: these wait until it is whole."""

    def __init__(self, pieces: int):
        self._left = pieces
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._failed = False

    def filling(self, make: Callable[[int], Made]) -> Callable[[int], Made]:
        """`make`, counted as one of the pieces."""

        def fill(first: int) -> Made:
            try:
                made = make(first)
            except BaseException:
                self._failed = True
                self._ready.set()
                raise
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._ready.set()
            return made

        return fill

    def wait(self) -> None:
        """Return when all pieces are there; raises Cancelled if one failed, which raised itself."""
        self._ready.wait()
        if self._failed:
            raise Cancelled("a part of the matrix could not be read")


def _tile_jobs(weights: Weights, part: FFNPart, prefix: str) -> Iterator[Job[Made]]:
    """Down first, for a unit holds columns of it: then units of gate, up and down."""
    blocks = part.units * part.blocks_per_unit
    shape = (ceil_div(part.width, TILE_ROWS), blocks, tile_bytes(part.down_dtype))
    down = np.empty(shape, np.uint8)
    down[:, ceil_div(part.neurons, TILE_COLS) :] = _zero_tile(part.down_dtype)
    step = TILE_ROWS * max(1, JOB_WEIGHTS // (TILE_ROWS * part.neurons))
    whole = _Whole(ceil_div(part.width, step))

    def make_down(first: int) -> Made:
        count = min(step, part.width - first)
        tiles, lost = weights.tiles(f"{prefix}ffn_down", first, count)
        panel = first // TILE_ROWS
        down[panel : panel + len(tiles), : tiles.shape[1]] = tiles
        return Made([], count * part.neurons, [(f"{prefix}ffn_down", lost)])

    for first in range(0, part.width, step):
        yield _job(0, whole.filling(make_down), first)

    roles = [f"{prefix}ffn_{name}" for name in ("gate", "up") if name == "up" or part.gate_dtype]
    per_unit = part.neurons_per_unit
    units = max(1, JOB_WEIGHTS // (len(roles) * per_unit * part.width))

    def make(first: int) -> Made:
        count = min(units, part.units - first)
        neurons = min(count * per_unit, part.neurons - first * per_unit)
        inputs, lost = [], []
        for role in roles:
            tiles, missed = weights.tiles(role, first * per_unit, neurons)
            inputs.append(_grown(tiles, count * per_unit // TILE_ROWS, weights.dtype(role)))
            lost.append((role, missed))
        whole.wait()
        begin, end = (i * part.blocks_per_unit for i in (first, first + count))
        joined = join_tiles(inputs, down[:, begin:end], part)
        made = [_stored(unit, part, first + i) for i, unit in enumerate(joined)]
        return Made(made, len(roles) * neurons * part.width, lost)

    for first in range(0, part.units, units):
        nbytes = min(units, part.units - first) * part.grains_per_unit * part.grain_bytes
        yield _job(nbytes, make, first)


def _row_jobs(weights: Weights, part: FFNPart, prefix: str) -> Iterator[Job[Made]]:
    """Down first, whole, as the checkpoint has it: a neuron's record holds a column of it."""
    role_down = f"{prefix}ffn_down"
    step = max(1, JOB_WEIGHTS // part.neurons)
    pieces: dict[int, Quantized] = {}
    whole = _Whole(ceil_div(part.width, step))

    def make_down(first: int) -> Made:
        count = min(step, part.width - first)
        pieces[first] = weights.source_rows(role_down, first, count)
        return Made([], count * part.neurons, [])

    for first in range(0, part.width, step):
        yield _job(0, whole.filling(make_down), first)

    roles = [f"{prefix}ffn_{name}" for name in ("gate", "up") if name == "up" or part.gate_dtype]
    per_job = math.lcm(part.neurons_per_unit, GROUP)  # quantised columns come in groups
    per_job *= max(1, JOB_WEIGHTS // (len(part.dtypes) * part.width * per_job))

    def make(first: int) -> Made:
        end = min(first + per_job, part.neurons)
        matrices, lost = [], []
        for role in roles:
            codes, missed = weights.codes(role, first, end - first)
            matrices.append(codes)
            lost.append((role, missed))
        whole.wait()
        columns = [_columns(pieces[i], first, end) for i in range(0, part.width, step)]
        transposed = Quantized("f32", np.ascontiguousarray(np.concatenate(columns).T))
        down, missed = weights.codes_of(transposed, role_down)
        gate = matrices[0] if part.gate_dtype else None
        units = list(pack_row_ffn(gate, matrices[-1], down, _some_neurons(part, end - first)))
        lost.append((role_down, missed))
        return Made(units, len(roles) * (end - first) * part.width, lost)

    for first in range(0, part.neurons, per_job):
        yield _job((min(first + per_job, part.neurons) - first) * part.grain_bytes, make, first)


def _stored(unit: Bytes, part: MatrixPart | FFNPart, index: int) -> Bytes:
    """Unit `index` of the part as its codec has it, from its tiles."""
    return squeeze_unit(unit, part, index) if part.codec == "bitmap" else unit


def _job(nbytes: int, make: Callable[[int], Made], first: int) -> Job[Made]:
    return Job(nbytes, lambda: make(first))


def _some_neurons(part: FFNPart, neurons: int) -> FFNPart:
    """The part as if it had only so many neurons."""
    return dataclasses.replace(part, neurons=neurons)


def _grown(tiles: Bytes, panels: int, dtype: str) -> Bytes:
    """Tiles with panels of zero weights below them, `panels` in all."""
    if len(tiles) == panels:
        return tiles
    out = np.empty((panels, *tiles.shape[1:]), np.uint8)
    out[: len(tiles)], out[len(tiles) :] = tiles, _zero_tile(dtype)
    return out


def _zero_tile(dtype: str) -> Bytes:
    """A tile of weights that are zero: uint8 [bytes]."""
    if dtype in PLAIN:
        return np.zeros(tile_bytes(dtype), np.uint8)
    codes = np.full((TILE_ROWS, TILE_COLS), ZERO_CODE[dtype], np.uint8)
    scales = np.zeros((TILE_ROWS, 1), np.float16)
    matrix = Quantized(dtype, codes, scales, scales if dtype == "q4m" else None)
    return pack_tiles(matrix, 1, 1).reshape(-1)


def _columns(matrix: Quantized, first: int, end: int) -> Floats:
    """Columns first..end of `matrix` as float32; both are multiples of 32 or the edge."""
    groups = slice(first // GROUP, ceil_div(end, GROUP))
    numbers = [None if n is None else n[:, groups] for n in (matrix.scales, matrix.minimums)]
    return dequantize(Quantized(matrix.dtype, matrix.codes[:, first:end], *numbers))
