"""A checkpoint's weights in the dtypes asked for, piece by piece, with what that loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.gguf_blocks import decode
from flashllm.convert.reading import TensorReader
from flashllm.convert.source import Rows, Source
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.quantize import Quantized, dequantize, quantize, stack
from flashllm.formats.checkpoint import Tensor

PIECE = 1 << 18  # weights handled at once: 1 MiB of float32 stays in the cache, 3x faster than 32


class Loss:
    """Relative RMS error of the weights, by role."""

    def __init__(self) -> None:
        self._error: defaultdict[str, float] = defaultdict(float)
        self._power: defaultdict[str, float] = defaultdict(float)

    def add(self, role: str, before: NDArray[np.float32], after: NDArray[np.float32]) -> None:
        """Count weights that were `before` and became `after`."""
        self._error[role] += float(np.square(before - after).sum(dtype=np.float64))
        self._power[role] += float(np.square(before).sum(dtype=np.float64))

    def report(self) -> dict[str, float] | None:
        """sqrt(sum of squared errors / sum of squares) by role; None if nothing was lost."""
        lossy = {role: error for role, error in self._error.items() if error}
        if not lossy:
            return None
        return {role: round(math.sqrt(e / self._power[role]), 6) for role, e in lossy.items()}


class Weights:
    """The matrices and vectors of a checkpoint."""

    def __init__(
        self,
        source: Source,
        reader: TensorReader,
        dtypes: Mapping[str, str],
        on_bytes: Callable[[int], None],
    ):
        """dtypes: of every matrix, by role. on_bytes is told the length of every piece read."""
        self.loss = Loss()
        self._source = source
        self._reader = reader
        self._dtypes = dtypes
        self._on_bytes = on_bytes

    def vector(self, role: str) -> NDArray[np.float32]:
        """A one-dimensional tensor as float32."""
        values = np.concatenate([self._elements(rows) for rows in self._source.places[role]])
        offset = self._source.norm_offset if role.endswith("_norm") else 0.0
        return values + np.float32(offset) if offset else values

    def matrix(self, role: str) -> Quantized:
        """A whole matrix [rows, cols]."""
        return stack(list(self.pieces(role, 1)))

    def pieces(self, role: str, multiple: int) -> Iterator[Quantized]:
        """A matrix in pieces of whole `multiple`s of rows (the last may hold fewer)."""
        rows, cols = self._source.shapes[role]
        step = max(1, PIECE // (cols * multiple)) * multiple
        for first in range(0, rows, step):
            piece = self._read(role, first, min(step, rows - first))
            yield self._recode(role, piece, self._dtypes[role])

    def transposed(self, role: str, dtype: str) -> Quantized:
        """A whole matrix [rows, cols] as [cols, rows] in `dtype`, its groups along the rows."""
        rows, cols = self._source.shapes[role]
        step = max(1, PIECE // cols)
        source = stack([self._read(role, i, min(step, rows - i)) for i in range(0, rows, step)])
        step = max(32, PIECE // rows // 32 * 32)
        pieces = [
            Quantized("f32", np.ascontiguousarray(_columns(source, i, i + step).T))
            for i in range(0, cols, step)
        ]
        return stack([self._recode(role, piece, dtype) for piece in pieces])

    def _elements(self, place: Rows) -> NDArray[np.float32]:
        """A vector, or the elements that some rows of a matrix hold."""
        tensor = place.tensor
        if len(tensor.shape) > 1:
            return dequantize(self._raw(tensor, place.first, place.count)).reshape(-1)
        values: NDArray[np.float32] = dequantize(self._raw(tensor, 0, 1))[0]
        return values[place.first : place.first + place.count]

    def _read(self, role: str, first: int, count: int) -> Quantized:
        """Rows of a matrix, from whichever tensors hold them."""
        found, begin = [], 0
        for place in self._source.places[role]:
            low, high = max(first, begin), min(first + count, begin + place.count)
            if low < high:
                found.append(self._raw(place.tensor, place.first + low - begin, high - low))
            begin += place.count
        if len({piece.dtype for piece in found}) > 1:
            found = [Quantized("f32", dequantize(piece)) for piece in found]
        return stack(found)

    def _raw(self, tensor: Tensor, first: int, count: int) -> Quantized:
        raw = self._reader.rows(tensor, first, count)
        piece = decode(raw, tensor.dtype)
        if not piece.is_finite():
            raise CorruptModel(
                f"{tensor.file}: tensor {tensor.name!r} holds NaN or infinite weights"
            )
        self._on_bytes(raw.nbytes)
        return piece

    def _recode(self, role: str, piece: Quantized, dtype: str) -> Quantized:
        if piece.dtype == dtype:
            return piece
        before = dequantize(piece)
        try:
            after = quantize(before, dtype)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self._source.path}: {role}: {error}") from None
        if dtype != "f32":
            self.loss.add(role.rpartition(".")[2], before, dequantize(after))
        return after


def _columns(matrix: Quantized, first: int, end: int) -> NDArray[np.float32]:
    """Columns first..end of `matrix` as float32; both are multiples of 32 or the edge."""
    groups = slice(first // 32, -(-end // 32))
    return dequantize(
        Quantized(
            matrix.dtype,
            matrix.codes[:, first:end],
            None if matrix.scales is None else matrix.scales[:, groups],
            None if matrix.minimums is None else matrix.minimums[:, groups],
        )
    )
