"""The weights of a sparse model, planted or random.

What decides which neurons fire is planted (sparse_planting.py): the embedding's reserved dimensions
and the rows that fire. All else is random, from one block of weights: attention, what else a gated
neuron reads, and what neurons write. Nothing but the embedding writes to the reserved dimensions,
and the embedding is so large that the norms' scale hardly moves.
"""

from __future__ import annotations

import dataclasses
import functools
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray
from sparse_planting import CARRIER, CODE, RESERVED, PlantedLayer, Statistics, plant, token_codes
from synthetic_shapes import Model
from synthetic_weights import TILE_COLS, TILE_ROWS, Bytes, Weights, checkpoint

from flashllm.convert.source import Source, understand
from flashllm.flash.codecs import pack_rows, pack_tiles, unpack_tiles
from flashllm.flash.parts import MatrixPart
from flashllm.flash.quantize import PLAIN, quantize, search_starts
from flashllm.kernels.quantizing import quantize_into, tiles_for

Floats = NDArray[np.float32]

SCALE = 100.0
"""Root mean square of a token's vector. What layers add to it is about 1 to each element."""
POSITION = 5.0
"""The same of a learned position."""
RECORDS = 2048
"""Random rows that neurons take in turns."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sparse model to be written: its shape, what is planted, and the rank of each predictor.

    shares: of co-activation along the neurons, None for independent ones.
    """

    model: Model
    dtype: str
    wanted: Statistics
    ranks: tuple[int, ...]
    shares: NDArray[np.float64] | None
    seed: int


class Planting:
    """The weights of a planted model."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.source: Source = understand(checkpoint(plan.model.config, plan.model.listed()))
        self.config = self.source.config
        self._weights = Weights(plan.seed)
        rng = np.random.default_rng([plan.seed, 0])
        self.codes = token_codes(self.config.vocab_size, plan.wanted.reuse, rng)
        self._layers: list[Future[PlantedLayer]] = [Future() for _ in plan.ranks]

    def plant(self, i: int) -> None:
        """Plant layer i, once. Any thread may."""
        plan, rng = self.plan, np.random.default_rng([self.plan.seed, 1 + i])
        size = self.config.ffn.size
        try:
            layer = plant(size, plan.dtype, self.codes, plan.wanted, plan.shares, rng)
        except BaseException as error:
            self._layers[i].set_exception(error)
            raise
        self._layers[i].set_result(layer)

    def layer(self, i: int) -> PlantedLayer:
        """Layer i, as soon as it is planted."""
        return self._layers[i].result()

    def embedding(self, first: int, count: int) -> Floats:
        """Vectors of tokens, of mean 0 and root mean square SCALE: float32 [count, hidden]."""
        hidden = self.config.hidden_size
        out = np.zeros((count, hidden), np.float32)
        out[:, :CODE] = self.codes[first : first + count]
        out[:, CARRIER] = 1
        rest = self._rest("embed", first, count)
        mean = -(out.sum(1, keepdims=True)) / rest.shape[1]
        room = hidden - CODE - 1 - rest.shape[1] * mean**2
        rest *= np.sqrt(room / np.square(rest).sum(1, keepdims=True))
        out[:, RESERVED:] = rest + mean
        return out * np.float32(SCALE)

    def positions(self, first: int, count: int) -> Floats:
        """Vectors of learned positions, of mean 0: float32 [count, hidden]."""
        out = np.zeros((count, self.config.hidden_size), np.float32)
        rest = self._rest("positions", first, count)
        out[:, RESERVED:] = rest * np.float32(POSITION / rest.std())
        return out

    def output(self, first: int, count: int) -> Floats:
        """Rows of an output matrix of its own: each is the vector of the token before it.

        So the likeliest token is the one after the last, and greedy decoding counts up.
        """
        before = self.embedding(max(first - 1, 0), count if first else count - 1)
        if first:
            return before
        last = self.embedding(self.config.vocab_size - 1, 1)
        return np.concatenate([last, before])

    def tiles(self, role: str, part: MatrixPart, unit: int) -> Bytes:
        """A unit of a matrix of attention; what is written to reserved dimensions is zero."""
        width = -(-part.cols // TILE_COLS)
        first, end = (
            unit * part.panels_per_unit,
            min((unit + 1) * part.panels_per_unit, part.panels),
        )
        tiles = self._weights.tiles(
            role, part.cols, part.dtype, np.arange(first * width, end * width)
        )
        zeros = RESERVED // TILE_ROWS - first
        if part.role == "attn_out" and zeros > 0:
            none = quantize(np.zeros((TILE_ROWS, TILE_COLS), np.float32), part.dtype)
            tiles[: zeros * width] = pack_tiles(none, 1, 1)[0]
        return tiles.reshape(-1)

    @functools.cached_property
    def outputs(self) -> Bytes:
        """What neurons write: uint8 [RECORDS, bytes], columns of down as codec `row` has them."""
        values = self._block("down")
        values[:, :RESERVED] = 0
        return _packed_rows(values, self.plan.dtype)

    @functools.cached_property
    def inputs(self) -> Bytes:
        """What gated neurons read beside the gate: uint8 [RECORDS, bytes], rows of up."""
        return _packed_rows(self._block("up"), self.plan.dtype)

    def _rest(self, name: str, first: int, count: int) -> Floats:
        """Random values for the dimensions that are not reserved, of mean 0 in each row."""
        hidden = self.config.hidden_size
        rows = self._weights.rows(name, hidden, "f16", first, count)
        values = rows.view(np.float16)[:, RESERVED:].astype(np.float32)
        return values - values.mean(1, keepdims=True)

    def _block(self, name: str) -> Floats:
        rows = self._weights.rows(name, self.config.hidden_size, "f16", 0, RECORDS)
        return rows.view(np.float16).astype(np.float32)


def as_tiles(values: Floats, dtype: str) -> Bytes:
    """Rows as tiles in a dtype: uint8 [panels, tiles, bytes]; whole tiles."""
    rows, cols = values.shape
    if dtype in PLAIN:
        return pack_tiles(quantize(values, dtype), rows // TILE_ROWS, cols // TILE_COLS)
    tiles = tiles_for(rows, cols, dtype)
    quantize_into(values, dtype, search_starts(dtype), tiles)
    return tiles


def _packed_rows(values: Floats, dtype: str) -> Bytes:
    """Rows as codec `row` has them: uint8 [rows, bytes]."""
    if dtype in PLAIN:
        return pack_rows(quantize(values, dtype))
    return pack_rows(unpack_tiles(as_tiles(values, dtype), *values.shape, dtype))
