"""The slow, obvious numpy twin of every kernel, in float32: the specification.

Each function takes the arguments of the Program method of its name, after the number of rows.
Weights are decoded from the bytes docs/format.md describes; activations are not quantised.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.kernels.program import Integers, Program
from flashllm.kernels.weights import (
    TILE_BYTES,
    Activations,
    FineActivations,
    Floats,
    KVRows,
    RowFFN,
    TileFFN,
    TileMatrix,
    padded,
)

Bytes = NDArray[np.uint8]
_STORED: dict[str, Any] = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}


def memory(address: int, count: int) -> Bytes:
    """`count` bytes at an address, as an array that owns nothing."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(int(address)))


# ------------------------------------------------------------------ decoding weights


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
    panel_bytes = weight.blocks * TILE_BYTES[weight.dtype]
    parts = []
    for unit, address in enumerate(weight.table):
        panels = min(weight.panels_per_unit, weight.panels - unit * weight.panels_per_unit)
        data = memory(address, panels * panel_bytes)
        parts.append(decode_tiles(data, weight.dtype, panels, weight.blocks))
    return np.concatenate(parts)[: weight.rows, : weight.cols]


def _tile_gate_up(ffn: TileFFN) -> tuple[Floats, Floats]:
    """gate and up, float32 [padded_neurons, width]."""
    blocks = -(-ffn.width // 32)
    gate, up = [], []
    for address in ffn.table:
        data = memory(address, 2 * ffn.gate_bytes)
        both = decode_tiles(data, ffn.dtype, 4 * ffn.blocks_per_unit, blocks)
        pairs = both.reshape(ffn.blocks_per_unit, 2, 32, -1)[..., : ffn.width]
        gate.append(pairs[:, 0].reshape(-1, ffn.width))
        up.append(pairs[:, 1].reshape(-1, ffn.width))
    return np.concatenate(gate), np.concatenate(up)


def _tile_down(ffn: TileFFN) -> Floats:
    """down, float32 [width, padded_neurons]."""
    panels = -(-ffn.width // 16)
    size = panels * ffn.blocks_per_unit * TILE_BYTES[ffn.down_dtype]
    parts = [
        decode_tiles(
            memory(address + 2 * ffn.gate_bytes, size), ffn.down_dtype, panels, ffn.blocks_per_unit
        )
        for address in ffn.table
    ]
    return np.concatenate(parts, axis=1)[: ffn.width]


def _row_part(ffn: RowFFN, part: int) -> Floats:
    """Part 0, 1 or 2 (gate, up, down) of the table's neurons, float32 [neurons, width]."""
    size = ffn.part_bytes
    rows = [
        decode_row(memory(address + part * size, size), ffn.dtype, ffn.width)
        for address in ffn.table
    ]
    return np.stack(rows) if rows else np.zeros((0, ffn.width), np.float32)


# ------------------------------------------------------------------ steps


def embed(rows: int, tokens: Integers, weight: TileMatrix, out: Floats) -> None:
    """Twin of Program.embed."""
    out[:rows, : weight.cols] = matrix(weight)[tokens[:rows]]


def rms_norm(rows: int, x: Floats, weight: Floats, eps: float, out: Floats) -> None:
    """Twin of Program.rms_norm."""
    width = len(weight)
    v = x[:rows, :width]
    mean = np.mean(v.astype(np.float64) ** 2, axis=1, keepdims=True)
    out[:rows, :width] = v / np.sqrt(mean + eps) * weight


def quantize(rows: int, x: Activations) -> None:
    """Twin of Program.quantize."""
    groups = x.values[:rows].reshape(rows, -1, 32)
    largest = np.abs(groups).max(axis=2)
    inverse = np.where(largest > 1e-30, np.float32(127) / np.maximum(largest, 1e-30), 0)
    codes = np.rint(groups * inverse.astype(np.float32)[..., None])
    x.codes[:rows] = codes.astype(np.int8).reshape(rows, -1)
    x.scales[:rows] = largest / np.float32(127)
    x.sums[:rows] = codes.sum(axis=2)


def quantize_fine(rows: int, x: FineActivations) -> None:
    """Twin of Program.quantize for FineActivations; products here use the exact floats."""
    both = x.rows
    both.values[0 : 2 * rows : 2] = x.values[:rows]
    quantize(2 * rows, both)
    codes = both.codes[: 2 * rows : 2].reshape(rows, -1, 32)
    left = (codes * both.scales[: 2 * rows : 2, :, None]).reshape(rows, -1)
    both.values[1 : 2 * rows : 2] = x.values[:rows] - left
    quantize(2 * rows, both)


def matmul(
    rows: int,
    x: Activations | FineActivations,
    weight: TileMatrix,
    accumulate: bool,
    out: Floats,
) -> None:
    """Twin of Program.matmul."""
    y = x.values[:rows, : weight.cols] @ matrix(weight).T
    out[:rows, : weight.rows] = out[:rows, : weight.rows] + y if accumulate else y


def rope(
    rows: int, x: Floats, heads: int, positions: Integers, cos: Floats, sin: Floats, style: str
) -> None:
    """Twin of Program.rope."""
    half = cos.shape[1]
    pairs = x[:rows, : heads * 2 * half].reshape(rows, heads, -1).copy()
    c, s = (table[positions[:rows], None, :] for table in (cos, sin))
    a = np.s_[..., 0::2] if style == "interleaved" else np.s_[..., :half]
    b = np.s_[..., 1::2] if style == "interleaved" else np.s_[..., half:]
    rotated = np.empty_like(pairs)
    rotated[a] = pairs[a] * c - pairs[b] * s
    rotated[b] = pairs[a] * s + pairs[b] * c
    x[:rows, : heads * 2 * half] = rotated.reshape(rows, -1)


def _cache(kv: KVRows, row: int, layer: int, head: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One head's keys [blocks, dim, 16] and values [positions, dim] in a row's sequence."""
    keys, values, size = (int(word) for word in kv.table[row])
    at = (layer * kv.kv_heads + head) * size
    k = memory(keys + at, size).view(kv.dtype).reshape(-1, kv.head_dim, 16)
    return k, memory(values + at, size).view(kv.dtype).reshape(-1, kv.head_dim)


def write_kv(
    rows: int, keys: Floats, values: Floats, layer: int, positions: Integers, kv: KVRows
) -> None:
    """Twin of Program.write_kv."""
    largest = np.finfo(kv.dtype).max
    for t in range(rows):
        block, lane = divmod(int(positions[t]), 16)
        for head in range(kv.kv_heads):
            part = np.s_[head * kv.head_dim : (head + 1) * kv.head_dim]
            k, v = _cache(kv, t, layer, head)
            k[block, :, lane] = np.clip(keys[t, part], -largest, largest)
            v[positions[t]] = np.clip(values[t, part], -largest, largest)


def attend(
    rows: int,
    queries: Floats,
    heads: int,
    scale: float,
    layer: int,
    positions: Integers,
    kv: KVRows,
    out: Floats,
) -> None:
    """Twin of Program.attend."""
    dim = kv.head_dim
    for t in range(rows):
        visible = int(positions[t]) + 1
        for head in range(heads):
            k, v = _cache(kv, t, layer, head * kv.kv_heads // heads)
            past = k[: -(-visible // 16)].transpose(0, 2, 1).reshape(-1, dim)[:visible]
            part = np.s_[t, head * dim : (head + 1) * dim]
            scores = past.astype(np.float32) @ queries[part] * np.float32(scale)
            weights = np.exp(scores - scores.max())
            out[part] = weights / weights.sum() @ v[:visible].astype(np.float32)


def _activate(x: Floats, function: str) -> Floats:
    if function == "relu":
        return np.maximum(x, 0)
    z = x if function == "silu" else 1.5957691216057308 * (x + 0.044715 * x**3)
    result: Floats = (x / (1 + np.exp(-np.maximum(z, -87)))).astype(np.float32)
    return result


def ffn_hidden(rows: int, x: Activations, ffn: TileFFN, function: str, out: Activations) -> None:
    """Twin of Program.ffn_hidden over `tile` units."""
    gate, up = _tile_gate_up(ffn)
    v = x.values[:rows, : ffn.width]
    out.values[:rows, : ffn.padded_neurons] = _activate(v @ gate.T, function) * (v @ up.T)


def ffn_down(rows: int, h: Activations, ffn: TileFFN, out: Floats) -> None:
    """Twin of Program.ffn_down over `tile` units."""
    out[:rows, : ffn.width] += h.values[:rows, : ffn.padded_neurons] @ _tile_down(ffn).T


def row_hidden(rows: int, x: Activations, ffn: RowFFN, function: str, out: Activations) -> None:
    """Twin of Program.ffn_hidden over `row` units."""
    v = x.values[:rows, : ffn.width]
    gate, up = v @ _row_part(ffn, 0).T, v @ _row_part(ffn, 1).T
    out.values[:rows, : len(ffn.table)] = _activate(gate, function) * up


def row_down(rows: int, h: Activations, ffn: RowFFN, out: Floats) -> None:
    """Twin of Program.ffn_down over `row` units."""
    out[:rows, : ffn.width] += h.values[:rows, : len(ffn.table)] @ _row_part(ffn, 2)


_STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        embed,
        rms_norm,
        quantize,
        quantize_fine,
        matmul,
        rope,
        write_kv,
        attend,
        ffn_hidden,
        ffn_down,
        row_hidden,
        row_down,
    )
} | {"matmul_fine": matmul}


class ReferenceProgram(Program):
    """Runs each step by its twin."""

    def __init__(self, capacity: int):
        super().__init__(capacity)
        self._steps: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def run(self, rows: int) -> None:
        """Execute the steps on rows 0 .. rows-1."""
        self.check_rows(rows)
        for step, args in self._steps:
            step(rows, *args)

    def _emit(self, name: str, *args: Any, parallel: bool = False) -> None:
        self._steps.append((_STEPS[name], args))
