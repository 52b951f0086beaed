"""The numbers that stored weights stand for, read plainly from bytes as docs/format.md has them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.kernels.weights import (
    BITMAP_SCALE_BYTES,
    TILE_BYTES,
    Floats,
    RowFFN,
    TileFFN,
    TileMatrix,
    padded,
    tile_panel_bytes,
)

Bytes = NDArray[np.uint8]
_STORED: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def memory(address: int, count: int) -> Bytes:
    """`count` bytes at an address, as an array that owns nothing."""
    if not count:
        return np.empty(0, np.uint8)
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(int(address)))


def decode_tiles(data: Bytes, dtype: str, panels: int, blocks: int) -> Floats:
    """Tiles [panels, blocks] to a matrix float32 [16 * panels, 32 * blocks]."""
    tiles = data.reshape(panels, blocks, TILE_BYTES[dtype])
    if dtype in _STORED:
        by_column = tiles.view(_STORED[dtype]).astype(np.float32).reshape(panels, blocks, 32, 16)
        weights = by_column.transpose(0, 3, 1, 2)
    else:
        code_bytes = 512 if dtype == "q8" else 256
        groups = tiles[:, :, :code_bytes].reshape(panels, blocks, -1, 16, 4)
        codes = groups if dtype == "q8" else np.concatenate([groups & 15, groups >> 4], axis=2)
        weights = _dequantize(
            codes.transpose(0, 3, 1, 2, 4).reshape(panels, 16, blocks, 32),
            np.ascontiguousarray(tiles[:, :, code_bytes:]).view(np.float16).astype(np.float32),
            dtype,
            lambda scales: scales.transpose(0, 2, 1)[..., None],
        )
    return np.ascontiguousarray(weights).reshape(16 * panels, 32 * blocks)


def read_panels(address: int, dtype: str, panels: int, tiles: int, *, bitmap: bool) -> Bytes:
    """`panels` panels of `tiles` tiles each, from an address on: uint8 [panels, tiles, bytes]."""
    size = tile_panel_bytes(dtype, tiles, bitmap=bitmap)
    if not bitmap:
        return memory(address, panels * size).reshape(panels, tiles, -1)
    found = [expand_run(address + i * size, dtype, tiles) for i in range(panels)]
    return np.array(found, np.uint8).reshape(panels, tiles, -1)


def expand_run(address: int, dtype: str, tiles: int) -> Bytes:
    """The tiles of a run of bitmaps, as they are without: uint8 [tiles, bytes]."""
    begin = address + int(memory(address, 8).view(np.int64)[0])
    places = np.unpackbits(memory(address + 8, 64 * tiles), bitorder="little").reshape(-1, 64) == 1
    scale_bytes = BITMAP_SCALE_BYTES[dtype] * tiles
    scales = memory(begin, scale_bytes).reshape(tiles, -1) if scale_bytes else np.zeros((tiles, 0))
    begin += scale_bytes
    if dtype in _STORED:
        elements = np.zeros(places.shape, np.uint16)
        elements[places] = memory(begin, 2 * int(places.sum())).view(np.uint16)
        return elements.view(np.uint8).reshape(tiles, -1)
    codes = np.full(places.shape, 128 if dtype == "q8" else 8, np.uint8)
    if dtype == "q8":
        codes[places] = memory(begin, int(places.sum()))
    else:
        for tile in range(0, len(codes), 8):
            for word in range(tile, tile + 4):
                counts = [int(places[i].sum()) for i in (word, word + 4)]
                pairs = memory(begin, max(counts))
                codes[word][places[word]] = pairs[: counts[0]] & 15
                codes[word + 4][places[word + 4]] = pairs[: counts[1]] >> 4
                begin += len(pairs)
    quads = codes.reshape(tiles, 8, 64)
    if dtype == "q4":
        quads = quads[:, :4] | quads[:, 4:] << 4
    return np.hstack([quads.reshape(tiles, -1), scales.astype(np.uint8)])


def _dequantize(
    codes: NDArray[np.uint8], scales: Floats, dtype: str, place: Callable[[Floats], Floats]
) -> Floats:
    values = codes.astype(np.float32)
    count = scales.shape[-1] // (2 if dtype == "q4m" else 1)
    scale = place(scales[..., :count])
    if dtype == "q4m":
        return values * scale + place(scales[..., count:])
    return (values - (128 if dtype == "q8" else 8)) * scale


def decode_row(data: Bytes, dtype: str, width: int) -> Floats:
    """A gate row, up row or down column of codec `row` to float32 [width]."""
    columns = padded(width)
    if dtype in _STORED:
        plain: Floats = data.view(_STORED[dtype]).astype(np.float32)
        return plain[:width]
    code_bytes = columns if dtype == "q8" else columns // 2
    codes = data[:code_bytes]
    if dtype != "q8":
        halves = codes.reshape(-1, 1, 32)
        codes = np.concatenate([halves & 15, halves >> 4], axis=1)
    scales = data[code_bytes:].view(np.float16).astype(np.float32)
    groups = _dequantize(codes.reshape(-1, 32), scales, dtype, lambda s: s[:, None])
    return groups.reshape(-1)[:width]


def matrix(weight: TileMatrix) -> Floats:
    """A tiled matrix as float32 [rows, cols]."""
    parts = []
    for unit, address in enumerate(weight.table):
        panels = min(weight.panels_per_unit, weight.panels - unit * weight.panels_per_unit)
        data = read_panels(int(address), weight.dtype, panels, weight.blocks, bitmap=weight.bitmap)
        parts.append(decode_tiles(data, weight.dtype, panels, weight.blocks))
    return np.concatenate(parts)[: weight.rows, : weight.cols]


def tile_inputs(ffn: TileFFN) -> list[Floats]:
    """Gate, if there is one, and up: float32 [padded_neurons, width] each."""
    blocks, matrices = -(-ffn.width // 32), 2 if ffn.gated else 1
    units = []
    for address in ffn.table:
        panels = 2 * matrices * ffn.blocks_per_unit
        data = read_panels(int(address), ffn.dtype, panels, blocks, bitmap=ffn.bitmap)
        rows = decode_tiles(data, ffn.dtype, panels, blocks)[:, : ffn.width]
        units.append(rows.reshape(ffn.blocks_per_unit, matrices, 32, ffn.width))
    together = np.concatenate(units)
    return [together[:, i].reshape(-1, ffn.width) for i in range(matrices)]


def tile_down(ffn: TileFFN) -> Floats:
    """down, float32 [width, padded_neurons]."""
    panels = -(-ffn.width // 16)
    per_unit = ffn.blocks_per_unit
    parts = []
    for address in ffn.table:
        begin = int(address) + ffn.input_bytes
        data = read_panels(begin, ffn.down_dtype, panels, per_unit, bitmap=ffn.bitmap)
        parts.append(decode_tiles(data, ffn.down_dtype, panels, per_unit))
    return np.concatenate(parts, axis=1)[: ffn.width]


def row_parts(ffn: RowFFN) -> list[Floats]:
    """Gate, if there is one, up and down of the neurons computed: float32 [neurons, width] each."""
    size, parts = ffn.part_bytes, 3 if ffn.gated else 2
    found = np.zeros((parts, len(ffn.computed), ffn.width), np.float32)
    for n, address in enumerate(ffn.computed):
        for part in range(parts):
            data = memory(address + part * size, size)
            found[part, n] = decode_row(data, ffn.dtype, ffn.width)
    return list(found)
