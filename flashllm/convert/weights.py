"""A checkpoint's weights, rows at a time, in the dtypes asked for, with what that loses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.gguf_blocks import (
    EXACT,
    KEPT,
    SAME_CODES,
    decode,
    exact,
    keep,
    kept_dtype,
)
from flashllm.convert.loss import Lost, lost_between
from flashllm.convert.reading import TensorReader
from flashllm.convert.source import Rows, Source
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.codecs import Bytes, pack_tiles, unpack_tiles
from flashllm.flash.layout import TILE_COLS, TILE_ROWS, ceil_div
from flashllm.flash.quantize import (
    LIMITS,
    PLAIN,
    Floats,
    Quantized,
    dequantize,
    quantize,
    search_starts,
    stack,
)
from flashllm.formats.checkpoint import Tensor
from flashllm.kernels.quantizing import quantize_into, tiles_for

_SEARCHED = ("q8", "q4", "q4m")


class Weights:
    """The matrices and vectors of a checkpoint; any thread may ask for any rows."""

    def __init__(self, source: Source, reader: TensorReader, dtypes: Mapping[str, str]):
        """dtypes: the flash dtype of every matrix, by role."""
        self.shapes = source.shapes
        self._source = source
        self._reader = reader
        self._dtypes = dtypes

    def dtype(self, role: str) -> str:
        """The flash dtype of a matrix."""
        return self._dtypes[role]

    def vector(self, role: str) -> Floats:
        """A one-dimensional tensor as float32. Raises CorruptModel, UnsupportedModel."""
        values = np.concatenate([self._elements(rows) for rows in self._source.places[role]])
        offset = self._source.norm_offset if role.endswith("_norm") else 0.0
        return values + np.float32(offset) if offset else values

    def source_rows(self, role: str, first: int, count: int) -> Quantized:
        """Rows of a matrix as the checkpoint has them, without loss. Raises CorruptModel."""
        return _stacked([self._exact(*rows) for rows in self._places(role, first, count)])

    def tiles(self, role: str, first: int, count: int) -> tuple[Bytes, Lost]:
        """Rows of a matrix as tiles, uint8 [panels, tiles, bytes], padded; and what that lost.

        Raises CorruptModel (weights that are not finite), UnsupportedModel (too large).
        """
        kept = self._kept(role, first, count)
        if kept is None:
            return self.tiles_of(self.source_rows(role, first, count), role)
        matrix, lost = kept
        if matrix.dtype != self._dtypes[role]:  # its scales were too large for float16
            return self.tiles_of(matrix, role)
        return _pack(matrix), lost

    def codes(self, role: str, first: int, count: int) -> tuple[Quantized, Lost]:
        """Rows of a matrix in its dtype, and what that lost. Raises as tiles() does."""
        kept = self._kept(role, first, count)
        if kept is not None and kept[0].dtype == self._dtypes[role]:
            return kept
        return self.codes_of(self.source_rows(role, first, count), role)

    def codes_of(self, matrix: Quantized, role: str) -> tuple[Quantized, Lost]:
        """`matrix` in the dtype of `role`, and what that lost. Raises UnsupportedModel."""
        dtype = self._dtypes[role]
        if matrix.dtype == dtype:
            return matrix, (0.0, 0.0)
        if dtype in _SEARCHED:
            tiles, lost = self.tiles_of(matrix, role)
            return unpack_tiles(tiles, matrix.rows, matrix.cols, dtype), lost
        before = dequantize(matrix)
        self._check_limit(float(np.abs(before).max(initial=0)), role)
        after = quantize(before, dtype)
        return after, (0.0, 0.0) if dtype == "f32" else lost_between(before, dequantize(after))

    def tiles_of(self, matrix: Quantized, role: str) -> tuple[Bytes, Lost]:
        """`matrix` as tiles in the dtype of `role`, and what that lost. Raises UnsupportedModel."""
        dtype = self._dtypes[role]
        if dtype not in _SEARCHED or matrix.dtype == dtype:
            codes, lost = self.codes_of(matrix, role)
            return _pack(codes), lost
        values: NDArray[Any] = matrix.codes if matrix.dtype in PLAIN else dequantize(matrix)
        self._check_limit(_largest(values), role)
        tiles = tiles_for(matrix.rows, matrix.cols, dtype)
        return tiles, quantize_into(values, dtype, search_starts(dtype), tiles)

    def _places(self, role: str, first: int, count: int) -> Iterator[tuple[Tensor, int, int]]:
        """Tensor, first row and count of every run of rows behind rows of a matrix."""
        begin = 0
        for place in self._source.places[role]:
            low, high = max(first, begin), min(first + count, begin + place.count)
            if low < high:
                yield place.tensor, place.first + low - begin, high - low
            begin += place.count

    def _kept(self, role: str, first: int, count: int) -> tuple[Quantized, Lost] | None:
        """Rows whose codes are the checkpoint's, but whose scales are rounded; None for others."""
        places = list(self._places(role, first, count))
        kinds = {tensor.dtype for tensor, _, _ in places}
        kind = min(kinds)
        if len(kinds) > 1 or kind in EXACT or kind not in SAME_CODES:
            return None
        if KEPT[kind] != self._dtypes[role]:
            return None
        raws = [self._reader.rows(*rows) for rows in places]
        before = np.concatenate([exact(raw, kind) for raw in raws])
        if not np.isfinite(before).all():
            raise _not_finite(places[0][0])
        self._check_limit(float(np.abs(before).max(initial=0)), role)
        after = _stacked([keep(raw, kind) for raw in raws])
        return after, lost_between(before, dequantize(after))

    def _exact(self, tensor: Tensor, first: int, count: int) -> Quantized:
        """Rows of a tensor without loss, in its own dtype or in float32."""
        kept_dtype(tensor.dtype, f"{tensor.file}: {tensor.name}")
        matrix = decode(self._reader.rows(tensor, first, count), tensor.dtype)
        finite = np.isfinite(_largest(matrix.codes)) if matrix.dtype in PLAIN else None
        if not (matrix.is_finite() if finite is None else finite):
            raise _not_finite(tensor)
        return matrix

    def _elements(self, place: Rows) -> Floats:
        """A vector, or the elements that some rows of a matrix hold."""
        tensor = place.tensor
        if len(tensor.shape) > 1:
            return dequantize(self._exact(tensor, place.first, place.count)).reshape(-1)
        values: Floats = dequantize(self._exact(tensor, 0, 1))[0]
        return values[place.first : place.first + place.count]

    def _check_limit(self, largest: float, role: str) -> None:
        dtype = self._dtypes[role]
        if largest > LIMITS.get(dtype, np.inf):
            raise UnsupportedModel(
                f"{self._source.path}: {role}: weights are too large for {dtype}; convert to bf16 "
                "or f32"
            )


def _largest(values: NDArray[Any]) -> float:
    """The largest magnitude in float32, float16 or bfloat16 values; infinite or NaN if one is.

    Floats are ordered as the integers that their bits are: several times faster than as floats.
    """
    wide = values.dtype.itemsize == 4
    bits: NDArray[Any] = values.view(np.uint32 if wide else np.uint16)
    magnitudes = bits & bits.dtype.type(0x7FFFFFFF if wide else 0x7FFF)
    top = np.array([magnitudes.max(initial=0)], bits.dtype)
    return float(top.view(values.dtype).astype(np.float32)[0])


def _not_finite(tensor: Tensor) -> CorruptModel:
    return CorruptModel(f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite weights")


def _stacked(pieces: list[Quantized]) -> Quantized:
    """One matrix of pieces below each other, in float32 unless all are of one dtype."""
    if len({piece.dtype for piece in pieces}) > 1:
        pieces = [Quantized("f32", dequantize(piece)) for piece in pieces]
    return stack(pieces)


def _pack(matrix: Quantized) -> Bytes:
    return pack_tiles(matrix, ceil_div(matrix.rows, TILE_ROWS), ceil_div(matrix.cols, TILE_COLS))
