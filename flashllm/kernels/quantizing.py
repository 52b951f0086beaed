"""The door to the quantising kernel: weights to tiles of codes, on the calling thread.

The GIL is released meanwhile; threads share a matrix by calling for different panels of it.
"""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.kernels.cpu.quantizing import SCRATCH, SOURCES, TARGETS, quantize_tiles
from flashllm.kernels.weights import TILE_BYTES, TILE_COLS, TILE_ROWS

_NAMES = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float16): "f16",
    np.dtype(ml_dtypes.bfloat16): "bf16",
}


class _Scratch(threading.local):
    """What the kernel works in, for each thread."""

    def __init__(self) -> None:
        self.floats = np.zeros(SCRATCH, np.float32)


_scratch = _Scratch()


def tiles_for(rows: int, cols: int, dtype: str) -> NDArray[np.uint8]:
    """Room for a matrix [rows, cols] in `dtype`: uint8 [panels, tiles, bytes], not yet written."""
    shape = (-(-rows // TILE_ROWS), -(-cols // TILE_COLS), TILE_BYTES[dtype])
    return np.empty(shape, np.uint8)


def quantize_into(
    weights: NDArray[Any], dtype: str, starts: NDArray[np.float32], tiles: NDArray[np.uint8]
) -> tuple[float, float]:
    """Quantise `weights` to q8, q4 or q4m as docs/format.md lays out tiles.

    weights: finite float32, float16 or bfloat16 [rows, cols], its rows contiguous; starts: of the
    search, float32 [2, n]; tiles: as of tiles_for. The codes are those of flash/quantize.py.
    Returns the sums of squared errors and of squares. Raises InvalidInput for other arrays.
    """
    rows, cols = weights.shape
    source = _NAMES.get(weights.dtype)
    expected = (-(-rows // TILE_ROWS), -(-cols // TILE_COLS), TILE_BYTES[dtype])
    if source is None or dtype not in TARGETS or not weights.flags.c_contiguous:
        raise InvalidInput(f"cannot quantise {weights.dtype} to {dtype}")
    if tiles.shape != expected or tiles.dtype != np.uint8 or not tiles.flags.c_contiguous:
        raise InvalidInput(f"tiles for {rows} x {cols} weights in {dtype} are uint8 {expected}")
    error, power = quantize_tiles(
        weights.ctypes.data,
        SOURCES[source],
        rows,
        cols,
        TARGETS[dtype],
        starts,
        _scratch.floats.ctypes.data,
        tiles.ctypes.data,
    )
    return float(error), float(power)
