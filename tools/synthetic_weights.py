"""Random weights of any amount from one block of them: the same model in every format.

The weights are one stream of tiles of 16 rows x 32 columns, which repeats after TILES of them. A
tensor takes consecutive tiles, panel by panel, from a place of its own. So the block is quantised
once for each width of matrices, and every format only copies it: whole tiles for flash models, rows
of tiles for safetensors and GGUF.

Weights of a matrix are normal, of variance 1 / columns, so that activations stay finite.
"""

from __future__ import annotations

import math
import threading
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.reading import TensorReader
from flashllm.flash.codecs import pack_tiles, unpack_tiles
from flashllm.flash.quantize import Quantized, search_starts
from flashllm.formats.checkpoint import Checkpoint, Tensor
from flashllm.kernels.quantizing import quantize_into, tiles_for

TILES = 16411  # 8.4 million weights; a prime, so that panels begin at every tile in turn
TILE_ROWS, TILE_COLS = 16, 32

Bytes = NDArray[np.uint8]


class Weights:
    """The weights of every tensor; a tensor is known by the name that transformers gives it.

    Any thread may ask. What the block becomes for a width and a dtype is kept.
    """

    def __init__(self, seed: int, sparsity: float = 0.0):
        """sparsity: the share of the weights that is zero, here and there."""
        shape = (TILE_ROWS, TILES * TILE_COLS)
        rng = np.random.default_rng(seed)
        self._noise = rng.standard_normal(shape, dtype=np.float32)
        self._noise[rng.random(shape, np.float32) < sparsity] = 0
        self._lock = threading.RLock()
        self._as_tiles: dict[tuple[int, str], Bytes] = {}
        self._as_strips: dict[tuple[int, str], Bytes] = {}

    def vector(self, name: str, size: int) -> NDArray[np.float16]:
        """A norm's weights, around 1, or a bias, around 0: float16 [size]."""
        first = _place(name) * TILE_COLS
        values = self._noise.reshape(-1)[first : first + size] * np.float32(0.02)
        return (values + np.float32(name.endswith("norm.weight"))).astype(np.float16)

    def tiles(self, name: str, width: int, dtype: str, numbers: NDArray[np.int64]) -> Bytes:
        """Tiles of the matrix `name` by number, as docs/format.md lays them out.

        numbers: of any shape; panel p of a matrix w tiles wide has the numbers p * w to
        p * w + w - 1. Returns uint8 [*numbers.shape, bytes of a tile].
        """
        return self._tiles(width, dtype).take((numbers + _place(name)) % TILES, axis=0)

    def rows(self, name: str, width: int, dtype: str, first: int, count: int) -> NDArray[np.uint8]:
        """Rows of a matrix as GGUF has them (float16: as anyone has): uint8 [count, bytes]."""
        strips = self._strips(width, dtype)
        tiles = width // TILE_COLS
        begin, end = first // TILE_ROWS, -(-(first + count) // TILE_ROWS)
        out = np.empty((end - begin, TILE_ROWS, tiles * strips.shape[2]), np.uint8)
        for i, panel in enumerate(range(begin, end)):
            start = (_place(name) + panel * tiles) % TILES
            out[i] = strips[:, start : start + tiles].reshape(TILE_ROWS, -1)
        skipped = first - begin * TILE_ROWS
        return out.reshape(-1, out.shape[2])[skipped : skipped + count]

    def _tiles(self, width: int, dtype: str) -> Bytes:
        """The block as tiles: uint8 [TILES, bytes]."""
        with self._lock:
            key = width, dtype
            if key not in self._as_tiles:
                self._as_tiles[key] = _packed(self._values(width), dtype)
            return self._as_tiles[key]

    def _strips(self, width: int, dtype: str) -> Bytes:
        """The block as rows of blocks of 32 weights, and the first ones again, as many as a row
        has: uint8 [16, TILES + width / 32, bytes of a block]."""
        with self._lock:
            key = width, dtype
            if key not in self._as_strips:
                if dtype == "f16":
                    strips = self._values(width).view(np.uint8).reshape(TILE_ROWS, TILES, -1)
                else:
                    strips = _blocks(self._tiles(width, dtype), dtype)
                again = strips[:, : width // TILE_COLS]
                self._as_strips[key] = np.concatenate([strips, again], axis=1)
            return self._as_strips[key]

    def _values(self, width: int) -> NDArray[np.float16]:
        return (self._noise / np.float32(math.sqrt(width))).astype(np.float16)


def _place(name: str) -> int:
    """The tile at which a tensor begins."""
    return zlib.crc32(name.encode()) % TILES


def _packed(values: NDArray[np.float16], dtype: str) -> Bytes:
    """The block, [16, TILES * 32], as tiles: uint8 [TILES, bytes]."""
    if dtype == "f16":
        return pack_tiles(Quantized("f16", values), 1, TILES)[0]
    tiles = tiles_for(*values.shape, dtype)
    quantize_into(values, dtype, search_starts(dtype), tiles)
    return tiles[0]


def _blocks(tiles: Bytes, dtype: str) -> Bytes:
    """Tiles as GGUF's blocks of Q8_0, Q4_0 or Q4_1 (github.com/ggml-org/llama.cpp, ggml-common.h):
    the scale, the minimum if there is one, then codes; uint8 [16, tiles, bytes]."""
    matrix = unpack_tiles(tiles[None], TILE_ROWS, len(tiles) * TILE_COLS, dtype)
    codes = matrix.codes.reshape(TILE_ROWS, len(tiles), TILE_COLS)
    codes = codes ^ 128 if dtype == "q8" else codes[..., :16] | codes[..., 16:] << 4
    numbers = [
        np.ascontiguousarray(part)[..., None].view(np.uint8)
        for part in (matrix.scales, matrix.minimums)
        if part is not None
    ]
    return np.concatenate([*numbers, codes], axis=2)


class Reader(TensorReader):
    """Reads tensors as if they were in the float16 files of a Hugging Face folder.

    A matrix whose rows are no multiple of 16 begins with so many rows of zeros: OPT's two positions
    that no token has.
    """

    def __init__(self, weights: Weights):
        super().__init__(())
        self._weights = weights

    def rows(self, tensor: Tensor, first: int, count: int) -> Bytes:
        """Raw bytes of `count` rows from row `first`: uint8 [count, bytes of a row]."""
        if len(tensor.shape) == 1:
            return self._weights.vector(tensor.name, tensor.shape[0]).view(np.uint8)[None]
        zeros = tensor.rows % TILE_ROWS
        before = min(max(zeros - first, 0), count)
        begin = max(first - zeros, 0)
        found = self._weights.rows(tensor.name, tensor.shape[-1], "f16", begin, count - before)
        if not before:
            return found
        return np.concatenate([np.zeros((before, tensor.row_bytes), np.uint8), found])


def checkpoint(config: dict[str, object], tensors: list[tuple[str, tuple[int, ...]]]) -> Checkpoint:
    """The headers of a Hugging Face folder with these tensors, of which there are no files."""
    nowhere = Path("synthetic")
    found = {
        name: Tensor(name, shape, "F16", nowhere, 0, 2 * math.prod(shape))
        for name, shape in tensors
    }
    return Checkpoint(nowhere, "safetensors", config, found, ())
