"""Packed units say what was packed: held to a slow reading of the format."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from unpacking import read_panels, read_row, read_tile_ffn

from flashllm.errors import CorruptModel
from flashllm.flash import codecs
from flashllm.flash.layout import DTYPES, ROW_UNIT, UNIT_TARGET, panel_bytes
from flashllm.flash.parts import FFNPart, MatrixPart, part_from_json
from flashllm.flash.quantize import dequantize, quantize

SHAPES = [(1, 1), (16, 32), (17, 33), (40, 64), (100, 100)]


def random_weights(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, cols), dtype=np.float32)


@pytest.mark.parametrize(("dtype", "shape"), list(itertools.product(DTYPES, SHAPES)))
def test_matrix_units(dtype: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    matrix = quantize(random_weights(rows, cols), dtype)
    part = MatrixPart("w", "tile", dtype, rows, cols, 2, 0, -(-rows // 32))
    units = [unit.tobytes() for unit in codecs.pack_matrix(matrix, part)]
    assert [len(unit) for unit in units] == part.lengths().tolist()
    tiles = -(-cols // 32)
    panels = [len(unit) // panel_bytes(dtype, cols) for unit in units]
    read = np.vstack([read_panels(u, dtype, p, tiles) for u, p in zip(units, panels, strict=True)])
    np.testing.assert_array_equal(read[:rows, :cols], dequantize(matrix))
    assert not read[rows:].any()
    if dtype != "q4m":
        assert not read[:, cols:].any()


@pytest.mark.parametrize(
    ("dtypes", "neurons", "width"),
    [
        (("f32",) * 3, 96, 64),
        (("q8",) * 3, 96, 64),
        (("q4m", "q4m", "q8"), 192, 96),
        (("q4", "q4", "bf16"), 70, 40),
        (("f16",) * 3, 33, 16),
        ((None, "f32", "f32"), 70, 40),
        ((None, "q4m", "q8"), 192, 96),
    ],
)
def test_tile_ffn_units(dtypes: tuple[str | None, str, str], neurons: int, width: int) -> None:
    blocks = -(-neurons // 32)
    per_unit = 2 if blocks % 2 == 0 else 1
    shapes = [(neurons, width), (neurons, width), (width, neurons)]
    gate, up, down = (
        quantize(random_weights(*shape, seed), dtype) if dtype else None
        for seed, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
    )
    assert up and down
    part = FFNPart("ffn", "tile", *dtypes, neurons, width, per_unit, 0, blocks // per_unit)
    units = [unit.tobytes() for unit in codecs.PACK_FFN["tile"](gate, up, down, part)]
    assert [len(unit) for unit in units] == part.lengths().tolist()
    read = read_tile_ffn(units, dtypes, width, per_unit)
    packed = [(ours, shape) for ours, shape in zip((gate, up, down), shapes, strict=True) if ours]
    for theirs, (ours, (rows, cols)) in zip(read, packed, strict=True):
        np.testing.assert_array_equal(theirs[:rows, :cols], dequantize(ours))
        assert not theirs[rows:].any()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("dtype", "width"), list(itertools.product(DTYPES, (32, 64, 96, 130))))
def test_row_ffn_units(dtype: str, width: int, gated: bool) -> None:
    neurons = 11
    parts = [quantize(random_weights(neurons, width, seed), dtype) for seed in range(2 + gated)]
    gate_dtype, gate = (dtype, parts[0]) if gated else (None, None)
    part = FFNPart("ffn", "row", gate_dtype, dtype, dtype, neurons, width, 4, 0, 3)
    assert part_from_json(part.to_json(), "here") == part
    packed = codecs.PACK_FFN["row"](gate, parts[-2], parts[-1], part)
    units = [unit.tobytes() for unit in packed]
    assert [len(unit) for unit in units] == part.lengths().tolist()
    rest = b"".join(units)
    for neuron in range(neurons):
        for matrix in parts:
            read, rest = read_row(rest, dtype, width)
            np.testing.assert_array_equal(read, dequantize(matrix)[neuron])
    assert rest == b""


@pytest.mark.parametrize("name", ["up_dtype", "down_dtype"])
def test_only_gates_may_be_missing(name: str) -> None:
    data = FFNPart.plan("ffn", "tile", (None, "q8", "q8"), 64, 32, 0).to_json()
    assert part_from_json(data, "here").to_json() == data
    with pytest.raises(CorruptModel, match="here: unknown weight dtype None"):
        part_from_json({**data, name: None}, "here")


def test_units_are_near_their_target_size() -> None:
    q = MatrixPart.plan("attn_q", "q4m", 576, 576, 0)
    assert (q.panels_per_unit, q.units) == (36, 1)
    wide = MatrixPart.plan("attn_q", "q4", 4096, 4096, 3)
    assert abs(int(wide.lengths()[0]) - UNIT_TARGET) < UNIT_TARGET // 4
    small = FFNPart.plan("ffn", "tile", ("q4m",) * 3, 1536, 576, 0)
    assert (small.blocks_per_unit, small.units) == (4, 12)
    large = FFNPart.plan("ffn", "tile", ("q4",) * 3, 11008, 4096, 0)
    assert (large.blocks_per_unit, large.units) == (1, 344)


@pytest.mark.parametrize(
    ("dtypes", "neurons", "width", "per_unit", "units"),
    [
        ((None, "f16", "f16"), 16384, 4096, 1, 16384),  # OPT-6.7B: a record is 16 KiB
        (("f16",) * 3, 11008, 4096, 1, 11008),
        (("q4",) * 3, 11008, 4096, 3, 3670),  # 6.75 KiB; the last unit holds one
        ((None, "q8", "q8"), 16384, 4096, 2, 8192),
        ((None, "q4", "q4"), 2560, 320, 46, 56),
        (("f32",) * 3, 7, 64, 7, 1),  # all neurons are less than a unit
    ],
)
def test_row_units_hold_the_fewest_neurons_that_fill_them(
    dtypes: tuple[str | None, str, str], neurons: int, width: int, per_unit: int, units: int
) -> None:
    part = FFNPart.plan("ffn", "row", dtypes, neurons, width, 0)
    assert (part.neurons_per_unit, part.units) == (per_unit, units)
    lengths = part.lengths()
    assert lengths.sum() == neurons * part.grain_bytes
    assert (lengths[:-1] == per_unit * part.grain_bytes).all()
    if units > 1:
        assert part.grain_bytes * (per_unit - 1) < ROW_UNIT <= part.grain_bytes * per_unit
