"""Units read by plain loops, written from docs/format.md alone: the slow twin of the packers."""

from __future__ import annotations

import ml_dtypes
import numpy as np

STORED = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
TILE_BYTES = {"f32": 2048, "f16": 1024, "bf16": 1024, "q8": 544, "q4": 288, "q4m": 320}


def read_tile(data: bytes, dtype: str) -> np.ndarray:
    """One tile as float32 [16, 32]."""
    assert len(data) == TILE_BYTES[dtype]
    weights = np.zeros((16, 32), np.float32)
    if dtype in STORED:
        return np.frombuffer(data, STORED[dtype]).reshape(32, 16).T.astype(np.float32)
    codes = 512 if dtype == "q8" else 256
    numbers = np.frombuffer(data[codes:], np.float16).astype(np.float32)
    for row in range(16):
        scale = numbers[row]
        for col in range(32):
            if dtype == "q8":
                code = data[(col // 4) * 64 + row * 4 + col % 4]
                weights[row, col] = (code - 128) * scale
                continue
            byte = data[(col % 16 // 4) * 64 + row * 4 + col % 4]
            code = byte & 15 if col < 16 else byte >> 4
            shift = (code - 8) * scale if dtype == "q4" else code * scale + numbers[16 + row]
            weights[row, col] = shift
    return weights


def read_panels(data: bytes, dtype: str, panels: int, tiles: int) -> np.ndarray:
    """Consecutive panels as float32 [16 * panels, 32 * tiles]."""
    size = TILE_BYTES[dtype]
    assert len(data) == panels * tiles * size
    places = [data[i : i + size] for i in range(0, len(data), size)]
    rows = [
        np.hstack([read_tile(t, dtype) for t in places[p * tiles : (p + 1) * tiles]])
        for p in range(panels)
    ]
    return np.vstack(rows)


def read_tile_ffn(
    units: list[bytes], dtypes: tuple[str | None, str, str], width: int, per_unit: int
) -> list[np.ndarray]:
    """Gate (if it has a dtype), up [neurons, width'] and down [width', neurons], with padding."""
    tiles, panels = -(-width // 32), -(-width // 16)
    inputs = [([], dtype) for dtype in dtypes[:2] if dtype]
    downs = []
    for unit in units:
        place = 0
        for _ in range(per_unit):
            for rows, dtype in inputs:
                size = 2 * tiles * TILE_BYTES[dtype]
                rows.append(read_panels(unit[place : place + size], dtype, 2, tiles))
                place += size
        downs.append(read_panels(unit[place:], dtypes[2], panels, per_unit))
    return [*(np.vstack(rows) for rows, _ in inputs), np.hstack(downs)]


def read_row(data: bytes, dtype: str, width: int) -> tuple[np.ndarray, bytes]:
    """One row of codec `row` as float32 [width], and the bytes after it."""
    padded = -(-width // 64) * 64
    if dtype in STORED:
        size = padded * np.dtype(STORED[dtype]).itemsize
        return np.frombuffer(data[:size], STORED[dtype]).astype(np.float32)[:width], data[size:]
    size = padded if dtype == "q8" else padded // 2
    groups = padded // 32
    more = 2 * groups * (2 if dtype == "q4m" else 1)
    numbers = np.frombuffer(data[size : size + more], np.float16).astype(np.float32)
    weights = np.zeros(width, np.float32)
    for col in range(width):
        scale = numbers[col // 32]
        if dtype == "q8":
            weights[col] = (data[col] - 128) * scale
            continue
        byte = data[col // 64 * 32 + col % 32]
        code = byte & 15 if col % 64 < 32 else byte >> 4
        shift = code * scale + numbers[groups + col // 32] if dtype == "q4m" else (code - 8) * scale
        weights[col] = shift
    return weights, data[size + more :]
