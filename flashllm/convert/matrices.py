"""Units of a part to the matrices they hold, in float32, and matrices to units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flashllm.convert.loss import Lost, lost_between
from flashllm.flash.bitmaps import squeeze_unit
from flashllm.flash.codecs import Bytes, join_tiles, pack_tiles
from flashllm.flash.layout import TILE_COLS, TILE_ROWS, ceil_div
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import PLAIN, Floats, quantize, search_starts
from flashllm.kernels.decoding import decode_tiles
from flashllm.kernels.expanding import expand_unit, tile_bytes
from flashllm.kernels.memory import OVERREAD
from flashllm.kernels.quantizing import quantize_into, tiles_for


def matrices(part: MatrixPart | FFNPart, units: Sequence[Bytes]) -> list[Floats]:
    """The matrix of a part, or gate (if there is one), up [neurons, width] and down
    [width, neurons]: float32 each.

    units: all of the part, of codec tile or bitmap, verified.
    """
    dense = [_tiles(part, unit, i) for i, unit in enumerate(units)]
    if isinstance(part, MatrixPart):
        tiles = ceil_div(part.cols, TILE_COLS)
        data = np.concatenate(dense)
        return [decode_tiles(data, part.dtype, part.panels, tiles)[: part.rows, : part.cols]]
    inputs, outputs = part.runs(0)
    end = tile_bytes([inputs])
    count, rows, columns = len(part.dtypes) - 1, [], []
    for unit in dense:
        found = decode_tiles(unit[:end], inputs.dtype, inputs.panels, inputs.tiles)
        rows.append(found[:, : part.width].reshape(-1, count, TILE_COLS, part.width))
        down = decode_tiles(unit[end:], outputs.dtype, outputs.panels, outputs.tiles)
        columns.append(down[: part.width])
    together = np.concatenate(rows)
    inward = [together[:, i].reshape(-1, part.width)[: part.neurons] for i in range(count)]
    return [*inward, np.concatenate(columns, axis=1)[:, : part.neurons]]


def packed(
    part: MatrixPart | FFNPart, weights: Sequence[Floats], before: Sequence[Floats]
) -> tuple[list[Bytes], list[Lost]]:
    """The units of a part, of codec tile or bitmap, from its matrices, and what each lost of what
    it was `before`. Raises UnsupportedModel for weights too large for the part's dtype.
    """
    if isinstance(part, MatrixPart):
        tiles = [_quantized(weights[0], part.dtype)]
        size = part.panels_per_unit
        units = [tiles[0][i : i + size].reshape(-1) for i in range(0, part.panels, size)]
    else:
        tiles = [
            _quantized(matrix, dtype)
            for matrix, dtype in zip(_filled(part, weights), part.dtypes, strict=True)
        ]
        units = list(join_tiles(tiles[:-1], tiles[-1], part))
    lost = [_lost(*pair) for pair in zip(before, tiles, part.dtypes, strict=True)]
    if part.codec == "bitmap":
        units = [squeeze_unit(unit, part, i) for i, unit in enumerate(units)]
    return units, lost


def _tiles(part: MatrixPart | FFNPart, unit: Bytes, index: int) -> Bytes:
    """A unit in codec tile."""
    if part.codec != "bitmap":
        return unit
    panels = part.runs(index)
    room = np.append(unit, np.zeros(OVERREAD, np.uint8))
    out = np.empty(tile_bytes(panels), np.uint8)
    expand_unit(room, len(unit), panels, out)
    return out


def _filled(part: FFNPart, weights: Sequence[Floats]) -> Iterator[Floats]:
    """The matrices with neurons of zero weights that fill the last unit."""
    more = part.units * part.neurons_per_unit - part.neurons
    *inputs, down = weights
    for matrix in inputs:
        yield np.pad(matrix, ((0, more), (0, 0)))
    yield np.pad(down, ((0, 0), (0, more)))


def _quantized(weights: Floats, dtype: str) -> Bytes:
    """A matrix as tiles: uint8 [panels, tiles, bytes]."""
    rows, cols = weights.shape
    if dtype in PLAIN:
        return pack_tiles(
            quantize(weights, dtype), ceil_div(rows, TILE_ROWS), ceil_div(cols, TILE_COLS)
        )
    tiles = tiles_for(rows, cols, dtype)
    quantize_into(np.ascontiguousarray(weights), dtype, search_starts(dtype), tiles)
    return tiles


def _lost(before: Floats, tiles: Bytes, dtype: str) -> Lost:
    rows, cols = before.shape
    after = decode_tiles(tiles.reshape(-1), dtype, *tiles.shape[:2])
    return lost_between(before, after[:rows, :cols])
