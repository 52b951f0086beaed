"""A GGUF file's weights in the dtype asked for, piece by piece, with what that loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.gguf_blocks import KEPT, decode
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.quantize import Quantized, dequantize, quantize, stack
from flashllm.formats.gguf import GGUFFile

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
    """The matrices and vectors of an open GGUF file in the wanted dtype ("keep": as they are)."""

    def __init__(self, file: GGUFFile, dtype: str, on_bytes: Callable[[int], None]):
        """on_bytes is told the length of every piece read from the file."""
        self.loss = Loss()
        self._file = file
        self._wanted = dtype
        self._on_bytes = on_bytes

    def dtype(self, tensor: str) -> str:
        """The flash dtype that `tensor` will have."""
        kept = KEPT[self._file.tensor(tensor).dtype]
        return kept if self._wanted == "keep" else self._wanted

    def vector(self, tensor: str) -> NDArray[np.float32]:
        """A one-dimensional tensor as float32."""
        values: NDArray[np.float32] = dequantize(self._read(tensor, 0, 1))[0]
        return values

    def matrix(self, role: str, tensor: str) -> Quantized:
        """A whole tensor [rows, cols]."""
        return stack(list(self.pieces(role, tensor, 1)))

    def pieces(self, role: str, tensor: str, multiple: int) -> Iterator[Quantized]:
        """A tensor in pieces of whole `multiple`s of rows (the last may hold fewer)."""
        rows, cols = self._file.tensor(tensor).shape
        step = max(1, PIECE // (cols * multiple)) * multiple
        for first in range(0, rows, step):
            piece = self._read(tensor, first, min(step, rows - first))
            yield self._recode(role, tensor, piece, self.dtype(tensor))

    def transposed(self, role: str, tensor: str, dtype: str) -> Quantized:
        """A whole tensor [rows, cols] as [cols, rows] in `dtype`, its groups along the rows."""
        rows, cols = self._file.tensor(tensor).shape
        step = max(1, PIECE // cols)
        source = stack([self._read(tensor, i, min(step, rows - i)) for i in range(0, rows, step)])
        step = max(32, PIECE // rows // 32 * 32)
        pieces = [
            Quantized("f32", np.ascontiguousarray(_columns(source, i, i + step).T))
            for i in range(0, cols, step)
        ]
        return stack([self._recode(role, tensor, piece, dtype) for piece in pieces])

    def _read(self, tensor: str, first: int, count: int) -> Quantized:
        raw = self._file.read_rows(tensor, first, count)
        piece = decode(raw, self._file.tensor(tensor).dtype)
        if not piece.is_finite():
            raise CorruptModel(
                f"{self._file.path}: tensor {tensor!r} holds NaN or infinite weights"
            )
        self._on_bytes(raw.nbytes)
        return piece

    def _recode(self, role: str, tensor: str, piece: Quantized, dtype: str) -> Quantized:
        if piece.dtype == dtype:
            return piece
        before = dequantize(piece)
        try:
            after = quantize(before, dtype)
        except UnsupportedModel as error:
            raise UnsupportedModel(f"{self._file.path}: tensor {tensor!r}: {error}") from None
        if dtype != "f32":
            self.loss.add(role, before, dequantize(after))
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
