"""Units of codec bitmap: the bytes that a plain reading of the format makes, and no lies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import squeezed

from flashllm.errors import CorruptModel
from flashllm.flash import codecs
from flashllm.flash.bitmaps import is_sound, squeeze_unit
from flashllm.flash.layout import panel_bytes
from flashllm.flash.parts import FFNPart, MatrixPart, Runs, part_from_json
from flashllm.flash.quantize import Quantized, quantize
from flashllm.kernels import soundness
from flashllm.kernels.expanding import expand_unit, tile_bytes

DTYPES = ("f16", "bf16", "q8", "q4")
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 1.0)
SHAPES = [(1, 1), (16, 32), (17, 33), (100, 100), (40, 2080)]


def pruned(rows: int, cols: int, dtype: str, sparsity: float, seed: int = 0) -> Quantized:
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((rows, cols), dtype=np.float32)
    weights[rng.random(weights.shape) < sparsity] = 0
    return quantize(weights, dtype)


def matrix_part(dtype: str, rows: int, cols: int) -> MatrixPart:
    return MatrixPart("w", "bitmap", dtype, rows, cols, 2, 0, -(-rows // 32))


def stored(matrix: Quantized, part: MatrixPart) -> list[tuple[bytes, np.ndarray]]:
    """Each unit in codec tile, and in codec bitmap."""
    units = list(codecs.pack_matrix(matrix, part))
    return [(unit.tobytes(), squeeze_unit(unit, part, i)) for i, unit in enumerate(units)]


def expanded(unit: np.ndarray, runs: tuple[Runs, ...]) -> bytes:
    """The tiles that the kernels make of a unit."""
    room = np.append(unit, np.full(64, 0xFF, np.uint8))
    out = np.empty(tile_bytes(runs), np.uint8)
    expand_unit(room, len(unit), runs, out)
    return out.tobytes()


@pytest.mark.parametrize(
    ("dtype", "shape", "sparsity"), list(itertools.product(DTYPES, SHAPES, SPARSITIES))
)
def test_units_of_a_matrix(dtype: str, shape: tuple[int, int], sparsity: float) -> None:
    part = matrix_part(dtype, *shape)
    assert part_from_json(part.to_json(), "here") == part
    size = panel_bytes(dtype, shape[1])
    found = stored(pruned(*shape, dtype, sparsity), part)
    assert len(found) == part.units
    for i, (tiles, unit) in enumerate(found):
        panels = [tiles[begin : begin + size] for begin in range(0, len(tiles), size)]
        assert unit.tobytes() == squeezed([(dtype, panels)])
        assert is_sound(unit, part.runs(i))
        assert part.lengths(0.0)[i] <= len(unit) <= part.lengths()[i]
        assert expanded(unit, part.runs(i)) == tiles
    if sparsity in (0.0, 1.0) and shape == (16, 32):
        # Rounding to q8 or q4 makes a few weights 0 that were not.
        assert len(found[0][1]) <= part.lengths(1 - sparsity)[0]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtypes", [("f16", "f16"), ("q8", "q8"), ("q4", "q8"), ("q4", "bf16")])
def test_units_of_a_feed_forward(dtypes: tuple[str, str], gated: bool) -> None:
    neurons, width = 200, 72
    gate, up = (pruned(neurons, width, dtypes[0], 0.6, seed) for seed in (1, 2))
    down = pruned(width, neurons, dtypes[1], 0.6, 3)
    named = (dtypes[0] if gated else None, *dtypes)
    part = FFNPart("ffn", "bitmap", *named, neurons, width, 7, 0, 1)
    assert part_from_json(part.to_json(), "here") == part
    unit = next(codecs.PACK_FFN["tile"](gate if gated else None, up, down, part))
    tiles = unit.tobytes()
    sets, begin = [], 0
    for run in part.runs(0):
        size = run.tiles * {"f16": 1024, "bf16": 1024, "q8": 544, "q4": 288}[run.dtype]
        end = begin + run.panels * size
        sets.append((run.dtype, [tiles[i : i + size] for i in range(begin, end, size)]))
        begin = end
    assert begin == len(tiles)
    ours = squeeze_unit(unit, part, 0)
    assert ours.tobytes() == squeezed(sets)
    assert expanded(ours, part.runs(0)) == tiles
    assert is_sound(ours, part.runs(0))
    assert part.lengths(0.0)[0] <= len(ours) <= part.lengths()[0]


def test_minus_zero_becomes_zero() -> None:
    weights = np.full((16, 32), -0.0, np.float32)
    weights[0, 0] = 1
    part = matrix_part("f16", 16, 32)
    [(_, unit)] = stored(quantize(weights, "f16"), part)
    assert len(unit) == part.lengths(0.0)[0] + 2


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_unit_that_lies_is_unsound(data: st.DataObject) -> None:
    """Any other place, any other number of bits, any other length."""
    dtype = data.draw(st.sampled_from(DTYPES))
    rows, cols = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 100))
    part = matrix_part(dtype, rows, cols)
    matrix = pruned(rows, cols, dtype, data.draw(st.sampled_from(SPARSITIES)), rows)
    unit = stored(matrix, part)[0][1]
    runs = part.runs(0)
    panel = 8 + 64 * runs[0].tiles
    lie = unit.copy()
    kind = data.draw(st.sampled_from(["place", "bits", "short", "long"]))
    at = data.draw(st.integers(0, runs[0].panels - 1)) * panel
    if kind == "place":
        lie[at : at + 8].view(np.int64)[0] += data.draw(st.integers(1, 1 << 62))
    elif kind == "bits":
        word = lie[at + 8 : at + 16].view(np.uint64)
        # Of nibbles those of the longer word decide, here and 4 words behind.
        other = lie[at + 40 : at + 48].view(np.uint64)
        word[0], other[0] = (0, 0) if np.bitwise_count(word[0]) else ((1 << 64) - 1, 0)
    elif kind == "short":
        lie = lie[: data.draw(st.integers(0, len(lie) - 1))]
    else:
        lie = np.append(lie, np.zeros(data.draw(st.integers(1, 100)), np.uint8))
    assert is_sound(unit, runs)
    assert not is_sound(lie, runs)
    assert soundness.is_sound(unit, runs)
    assert not soundness.is_sound(lie, runs)


@pytest.mark.parametrize("dtype", ["q4m", "f32"])
def test_dtypes_without_bitmaps(dtype: str) -> None:
    data = {**matrix_part("q8", 16, 32).to_json(), "dtype": dtype}
    with pytest.raises(CorruptModel, match="bitmaps of"):
        part_from_json(data, "here")
