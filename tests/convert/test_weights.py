"""Rows of every tensor type in every dtype: kept where they can be, else as the twin quantises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_gguf_blocks import random_blocks

from flashllm.convert.gguf_blocks import EXACT, KEPT, SAME_CODES, exact, keep
from flashllm.convert.reading import TensorReader
from flashllm.convert.source import Rows
from flashllm.convert.weights import Weights
from flashllm.errors import UnsupportedModel
from flashllm.flash.codecs import pack_tiles, unpack_tiles
from flashllm.flash.layout import ceil_div
from flashllm.flash.quantize import LIMITS, Quantized, dequantize, quantize
from flashllm.formats.checkpoint import Tensor

WANTED = ("f32", "f16", "bf16", "q8", "q4", "q4m")
ROWS = 19


def weights_of(tmp_path: Path, raws: dict[str, np.ndarray], wanted: str) -> Weights:
    """A matrix "w" of tensors that lie below each other, behind some bytes of something else."""
    data, places = b"header!", []
    file = tmp_path / "weights"
    for dtype, raw in raws.items():
        shape = (len(raw), exact(raw, dtype).shape[1])
        tensor = Tensor(dtype, shape, dtype, file, len(data), raw.nbytes)
        places.append(Rows(tensor, 0, len(raw)))
        data += raw.tobytes()
    file.write_bytes(data)
    shape = (sum(place.count for place in places), places[0].tensor.shape[1])
    source = SimpleNamespace(shapes={"w": shape}, places={"w": tuple(places)}, path=file)
    return Weights(source, TensorReader((file,)), {"w": wanted})


def packed(matrix: Quantized) -> np.ndarray:
    return pack_tiles(matrix, ceil_div(matrix.rows, 16), ceil_div(matrix.cols, 32))


@pytest.mark.parametrize("wanted", WANTED)
@pytest.mark.parametrize("dtype", sorted(KEPT))
def test_every_type_in_every_dtype(tmp_path: Path, dtype: str, wanted: str) -> None:
    raw = random_blocks(dtype, largest=0.01, rows=ROWS)
    before = exact(raw, dtype)
    kept = KEPT[dtype] == wanted and dtype in SAME_CODES
    if np.abs(before).max() > LIMITS.get(wanted, np.inf) and dtype not in EXACT:
        with pytest.raises(UnsupportedModel, match=f"w: weights are too large for {wanted}"):
            weights_of(tmp_path, {dtype: raw}, wanted).tiles("w", 0, ROWS)
        return
    expected = keep(raw, dtype) if kept else quantize(before, wanted)
    weights = weights_of(tmp_path, {dtype: raw}, wanted)
    tiles, (error, power) = weights.tiles("w", 0, ROWS)
    np.testing.assert_array_equal(tiles, packed(expected))
    codes, lost = weights.codes("w", 0, ROWS)
    np.testing.assert_array_equal(packed(codes), tiles)
    assert lost == (error, power)
    wide = before.astype(np.float64)
    assert error == pytest.approx(((dequantize(expected) - wide) ** 2).sum(), rel=0.01, abs=1e-9)
    if dtype in EXACT and KEPT[dtype] == wanted:
        assert error == 0
    elif error:
        assert power == pytest.approx((wide**2).sum(), rel=1e-4)


def test_rows_of_two_tensors_of_two_types(tmp_path: Path) -> None:
    raws = {name: random_blocks(name, 0.01, rows=ROWS)[:, :width] for name, width in WIDTHS.items()}
    before = np.concatenate([exact(raw, name) for name, raw in raws.items()])
    weights = weights_of(tmp_path, raws, "q8")
    tiles, _ = weights.tiles("w", 11, 20)
    np.testing.assert_array_equal(tiles, packed(quantize(before[11:31], "q8")))


WIDTHS = {"Q8_0": 8 * 34, "F16": 256 * 2}


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4m"])
@pytest.mark.parametrize("shape", [(16, 32), (37, 109)])
def test_tiles_are_taken_apart_again(shape: tuple[int, int], dtype: str) -> None:
    matrix = quantize(np.random.default_rng(0).standard_normal(shape, dtype=np.float32), dtype)
    again = unpack_tiles(packed(matrix), *shape, dtype)
    np.testing.assert_array_equal(again.codes, matrix.codes)
    np.testing.assert_array_equal(again.scales, matrix.scales)
    if dtype == "q4m":
        np.testing.assert_array_equal(again.minimums, matrix.minimums)
