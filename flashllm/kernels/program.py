"""A program: the steps of a layer, recorded once, checked once, and run for any number of rows.

Both backends share these signatures. Every size is checked here, when a step is recorded, because
kernels check nothing; at a run, only the number of rows varies.
"""

from __future__ import annotations

import abc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.kernels.weights import (
    QUANTIZED,
    Activations,
    FineActivations,
    Floats,
    KVRows,
    RowFFN,
    TileFFN,
    TileMatrix,
    padded,
)

Integers = NDArray[np.int64]


class Program(abc.ABC):
    """Records steps; run(rows) executes them in order on the first `rows` rows of each buffer.

    parallel=True lets a step start before the one recorded just before it is finished: it must not
    touch what that one writes.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity

    @abc.abstractmethod
    def run(self, rows: int) -> None:
        """Execute the steps on rows 0 .. rows-1."""

    @abc.abstractmethod
    def _emit(self, name: str, *args: Any, parallel: bool = False) -> None:
        """Record one checked step."""

    def embed(self, tokens: Integers, weight: TileMatrix, out: Floats) -> None:
        """out[t] = row tokens[t] of weight; the caller has checked 0 <= tokens < weight.rows."""
        self._vector("tokens", tokens, np.int64)
        self._rows("out", out, weight.cols)
        self._emit("embed", tokens, weight, out)

    def rms_norm(self, x: Floats, weight: Floats, eps: float, out: Floats) -> None:
        """out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight (Zhang and Sennrich, 2019)."""
        width = len(weight)
        self._vector("weight", weight, np.float32, length=width)
        self._rows("x", x, width)
        self._rows("out", out, width)
        self._emit("rms_norm", x, weight, eps, out)

    def quantize(self, x: Activations | FineActivations) -> None:
        """The int8 form of x.values."""
        self._activations("x", x, x.width)
        self._emit("quantize" if isinstance(x, Activations) else "quantize_fine", x)

    def matmul(
        self,
        x: Activations | FineActivations,
        weight: TileMatrix,
        out: Floats,
        *,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out[t] = weight x[t], or out[t] += weight x[t]."""
        self._activations("x", x, weight.cols)
        self._rows("out", out, weight.rows)
        fine = isinstance(x, FineActivations) and weight.dtype in QUANTIZED
        name = "matmul_fine" if fine else "matmul"
        self._emit(name, x, weight, accumulate, out, parallel=parallel)

    def rope(
        self,
        x: Floats,
        heads: int,
        positions: Integers,
        cos: Floats,
        sin: Floats,
        style: str,
        *,
        parallel: bool = False,
    ) -> None:
        """Rotate every head of x in place by its position (Su et al., 2021).

        cos, sin float32 [positions, head_dim / 2]; style as in ModelConfig.rope_style.
        """
        if cos.shape != sin.shape or cos.ndim != 2 or style not in ("interleaved", "half"):
            raise InvalidInput(f"rope: tables {cos.shape} and {sin.shape}, style {style!r}")
        for name, table in (("cos", cos), ("sin", sin)):
            self._contiguous(name, table, np.float32)
        self._vector("positions", positions, np.int64)
        self._rows("x", x, heads * cos.shape[1] * 2)
        self._emit("rope", x, heads, positions, cos, sin, style, parallel=parallel)

    def write_kv(
        self, keys: Floats, values: Floats, layer: int, positions: Integers, kv: KVRows
    ) -> None:
        """Put this step's keys and values [rows, kv_heads * head_dim] into the cache."""
        self._kv(kv, layer, positions)
        self._rows("keys", keys, kv.kv_heads * kv.head_dim)
        self._rows("values", values, kv.kv_heads * kv.head_dim)
        self._emit("write_kv", keys, values, layer, positions, kv)

    def attend(
        self,
        queries: Floats,
        heads: int,
        scale: float,
        layer: int,
        positions: Integers,
        kv: KVRows,
        out: Floats,
    ) -> None:
        """out[t] = softmax(scale * q K^T) V over positions 0 .. positions[t] of t's sequence."""
        self._kv(kv, layer, positions)
        if heads < 1 or heads % kv.kv_heads:
            raise InvalidInput(f"{heads} heads cannot share {kv.kv_heads} key/value heads")
        self._rows("queries", queries, heads * kv.head_dim)
        self._rows("out", out, heads * kv.head_dim)
        self._emit("attend", queries, heads, scale, layer, positions, kv, out)

    def ffn_hidden(
        self, x: Activations, ffn: TileFFN | RowFFN, function: str, out: Activations
    ) -> None:
        """out[t] = function(gate x[t]) * (up x[t]), with its int8 form if down needs it."""
        if function not in ("silu", "gelu", "relu"):
            raise InvalidInput(f"no activation function {function!r}; silu, gelu or relu")
        self._activations("x", x, ffn.width)
        if isinstance(ffn, RowFFN):
            self._activations("out", out, len(ffn.table))
            self._emit("row_hidden", x, ffn, function, out)
        else:
            self._activations("out", out, ffn.padded_neurons)
            self._emit("ffn_hidden", x, ffn, function, out)

    def ffn_down(self, h: Activations, ffn: TileFFN | RowFFN, out: Floats) -> None:
        """out[t] += down h[t]."""
        self._rows("out", out, ffn.width)
        if isinstance(ffn, RowFFN):
            self._activations("h", h, len(ffn.table))
            self._emit("row_down", h, ffn, out)
        else:
            self._activations("h", h, ffn.padded_neurons)
            self._emit("ffn_down", h, ffn, out)

    # -------------------------------------------------------------- checks

    def check_rows(self, rows: int) -> None:
        """Raise InvalidInput unless the buffers have room for `rows` rows."""
        if not 1 <= rows <= self.capacity:
            raise InvalidInput(f"a step of {rows} rows; this program takes 1 to {self.capacity}")

    def _contiguous(self, name: str, array: NDArray[Any], dtype: type) -> None:
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise InvalidInput(f"{name}: expected a contiguous {dtype.__name__} array")

    def _vector(
        self, name: str, array: NDArray[Any], dtype: type, length: int | None = None
    ) -> None:
        self._contiguous(name, array, dtype)
        if array.ndim != 1 or len(array) < (self.capacity if length is None else length):
            raise InvalidInput(f"{name}: shape {array.shape} is too small")

    def _rows(self, name: str, array: Floats, width: int) -> None:
        self._contiguous(name, array, np.float32)
        if array.ndim != 2 or len(array) < self.capacity or array.shape[1] < padded(width):
            raise InvalidInput(
                f"{name}: shape {array.shape}, expected at least [{self.capacity}, {padded(width)}]"
            )

    def _activations(self, name: str, x: Activations | FineActivations, width: int) -> None:
        self._rows(name, x.values, width)

    def _kv(self, kv: KVRows, layer: int, positions: Integers) -> None:
        self._vector("positions", positions, np.int64)
        if len(kv.table) < self.capacity or layer < 0:
            raise InvalidInput(f"layer {layer}: the key/value table has {len(kv.table)} rows")
