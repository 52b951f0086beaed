"""The inner layout of units: quantised matrices to the bytes that kernels read.

`tile` packs every matrix in tiles of 16 rows x 32 columns; `row` packs a feed-forward network one
neuron after another. docs/format.md draws both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.layout import GROUP, TILE_COLS, TILE_ROWS, ceil_div, round_up, tile_bytes
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import PLAIN, ZERO_CODE, Quantized

Bytes = NDArray[np.uint8]
FFNPacker = Callable[[Quantized | None, Quantized, Quantized, FFNPart], Iterator[Bytes]]


def pack_tiles(matrix: Quantized, panels: int, tiles: int) -> Bytes:
    """`matrix` in `panels` x `tiles` tiles, zero beyond its edges: uint8 [panels, tiles, bytes]."""
    rows, cols = panels * TILE_ROWS, tiles * TILE_COLS
    if matrix.dtype in PLAIN:
        values = _padded(_as_bits(matrix.codes), rows, cols, 0)
        lanes = values.reshape(panels, TILE_ROWS, tiles, TILE_COLS).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(lanes).view(np.uint8).reshape(panels, tiles, -1)
    codes = _padded(matrix.codes, rows, cols, ZERO_CODE[matrix.dtype])
    if matrix.dtype != "q8":
        halves = codes.reshape(rows, tiles, 2, 16)
        codes = halves[:, :, 0] | halves[:, :, 1] << 4
    quads = codes.reshape(panels, TILE_ROWS, tiles, -1, 4).transpose(0, 2, 3, 1, 4)
    out = np.empty((panels, tiles, tile_bytes(matrix.dtype)), np.uint8)
    end = quads.shape[2] * 64
    out[:, :, :end].reshape(panels, tiles, -1, TILE_ROWS, 4)[:] = quads
    for numbers in (matrix.scales, matrix.minimums):
        if numbers is not None:
            columns = _padded(numbers, rows, tiles, 0).reshape(panels, TILE_ROWS, tiles)
            bits = np.ascontiguousarray(columns.transpose(0, 2, 1)).view(np.uint8)
            out[:, :, end : end + 32] = bits
            end += 32
    return out


def unpack_tiles(tiles: Bytes, rows: int, cols: int, dtype: str) -> Quantized:
    """The q8, q4 or q4m matrix [rows, cols] that pack_tiles made into these tiles."""
    panels, width = tiles.shape[:2]
    end = tiles.shape[2] - (64 if dtype == "q4m" else 32)
    quads = tiles[:, :, :end].reshape(panels, width, -1, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    codes = quads.reshape(panels * TILE_ROWS, width, -1)
    if dtype != "q8":
        codes = np.concatenate([codes & 15, codes >> 4], axis=2)
    numbers = [
        np.ascontiguousarray(tiles[:, :, i : i + 32]).view(np.float16).transpose(0, 2, 1)
        for i in range(end, tiles.shape[2], 32)
    ]
    columns = [part.reshape(panels * TILE_ROWS, width)[:rows] for part in numbers]
    return Quantized(dtype, codes.reshape(panels * TILE_ROWS, -1)[:rows, :cols], *columns)


def pack_rows(matrix: Quantized) -> Bytes:
    """Each row of `matrix` as codec `row` has it, width padded to 64: uint8 [rows, bytes]."""
    rows, width = matrix.rows, round_up(matrix.cols, 64)
    if matrix.dtype in PLAIN:
        values = _padded(_as_bits(matrix.codes), rows, width, 0)
        return values.view(np.uint8).reshape(rows, -1)
    codes = _padded(matrix.codes, rows, width, ZERO_CODE[matrix.dtype])
    if matrix.dtype != "q8":
        halves = codes.reshape(rows, -1, 2, 32)
        codes = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(rows, -1)
    numbers = [
        _padded(part, rows, width // GROUP, 0).view(np.uint8)
        for part in (matrix.scales, matrix.minimums)
        if part is not None
    ]
    return np.hstack([codes, *numbers])


def pack_matrix(matrix: Quantized, part: MatrixPart) -> Iterator[Bytes]:
    """The units of `matrix`, which is `part` or whole units of it: uint8 [bytes] each."""
    panels = ceil_div(matrix.rows, TILE_ROWS)
    packed = pack_tiles(matrix, panels, ceil_div(part.cols, TILE_COLS))
    for first in range(0, panels, part.panels_per_unit):
        yield packed[first : first + part.panels_per_unit].reshape(-1)


def pack_tile_ffn(
    gate: Quantized | None, up: Quantized, down: Quantized, part: FFNPart
) -> Iterator[Bytes]:
    """The units of a feed-forward in codec `tile`: uint8 [bytes] each.

    gate (None without gates), up [neurons, width] and down [width, neurons] hold the whole part.
    """
    blocks, tiles = part.units * part.blocks_per_unit, ceil_div(part.width, TILE_COLS)
    matrices = [up] if gate is None else [gate, up]
    inputs = [pack_tiles(matrix, 2 * blocks, tiles) for matrix in matrices]
    yield from join_tiles(inputs, pack_tiles(down, ceil_div(part.width, TILE_ROWS), blocks), part)


def join_tiles(inputs: Sequence[Bytes], down: Bytes, part: FFNPart) -> Iterator[Bytes]:
    """Whole units of a feed-forward in codec `tile` from its matrices' tiles.

    inputs: of the gate if there is one, and of up, uint8 [panels, tiles, bytes]; down: the same
    neurons' columns, uint8 [panels of the width, blocks, bytes].
    """
    per_unit = part.blocks_per_unit
    split = [tiles.reshape(-1, per_unit, 1, 2 * tiles[0].size) for tiles in inputs]
    for unit in range(len(split[0])):
        panels = np.concatenate([tiles[unit] for tiles in split], axis=1)
        outputs = down[:, unit * per_unit : (unit + 1) * per_unit]
        yield np.concatenate([panels.reshape(-1), outputs.reshape(-1)])


def pack_row_ffn(
    gate: Quantized | None, up: Quantized, down: Quantized, part: FFNPart
) -> Iterator[Bytes]:
    """The units of a feed-forward in codec `row`: uint8 [bytes] each.

    gate (None without gates), up and down are all [neurons, width]: down transposed, its groups
    along the width.
    """
    matrices = [up, down] if gate is None else [gate, up, down]
    records = np.hstack([pack_rows(matrix) for matrix in matrices])
    for first in range(0, part.neurons, part.neurons_per_unit):
        yield records[first : first + part.neurons_per_unit].reshape(-1)


PACK_FFN: dict[str, FFNPacker] = {"tile": pack_tile_ffn, "row": pack_row_ffn}
"""How each codec packs a feed-forward network."""


def _as_bits(values: NDArray[Any]) -> NDArray[Any]:
    """Two-byte floats as uint16, which numpy moves faster than types it was taught."""
    return values.view(np.uint16) if values.dtype.itemsize == 2 else values


def _padded(array: NDArray[Any], rows: int, cols: int, fill: int) -> NDArray[Any]:
    """`array` [r, c] grown to [rows, cols] with `fill`; contiguous."""
    if array.shape == (rows, cols):
        return np.ascontiguousarray(array)
    out = np.full((rows, cols), fill, array.dtype)
    out[: array.shape[0], : array.shape[1]] = array
    return out
