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
    Nonlinearity,
    RowFFN,
    Scoring,
    TileFFN,
    TileMatrix,
    padded,
)

Integers = NDArray[np.int64]


class Program(abc.ABC):
    """Records steps; run(rows) executes them in order on the first `rows` rows of each buffer.

    parallel=True lets a step start before the one recorded just before it is finished: it must not
    touch what that one writes. accumulate=True adds to what `out` holds instead of replacing it.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity

    @abc.abstractmethod
    def run(self, rows: int) -> None:
        """Execute the steps on rows 0 .. rows-1."""

    @abc.abstractmethod
    def _emit(self, name: str, *args: Any, parallel: bool = False) -> None:
        """Record one checked step."""

    def embed(
        self,
        indices: Integers,
        weight: TileMatrix,
        out: Floats,
        *,
        scale: float = 1.0,
        accumulate: bool = False,
    ) -> None:
        """out[t] = scale * row indices[t] of weight; the caller has seen to 0 <= index < rows."""
        self._vector("indices", indices, np.int64)
        self._rows("out", out, weight.cols)
        if weight.bitmap:
            raise InvalidInput("rows of a matrix that is stored as bitmaps cannot be looked up")
        self._emit("embed", indices, weight, scale, accumulate, out)

    def copy(self, x: Floats, width: int, out: Floats) -> None:
        """out[t] = x[t], `width` elements."""
        self._rows("x", x, width)
        self._rows("out", out, width)
        self._emit("copy", x, width, out)

    def rms_norm(
        self,
        x: Floats,
        weight: Floats,
        eps: float,
        out: Floats,
        *,
        bias: Floats | None = None,
        groups: int = 1,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight + bias (Zhang and Sennrich, 2019).

        x[t] is `groups` vectors side by side, each normed by itself; out may be x.
        """
        self._norm(x, weight, bias, groups, out)
        args = (x, weight, bias, eps, groups, accumulate, out)
        self._emit("rms_norm", *args, parallel=parallel)

    def layer_norm(
        self,
        x: Floats,
        weight: Floats,
        eps: float,
        out: Floats,
        *,
        bias: Floats | None = None,
        groups: int = 1,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out[t] = (x[t] - mean) / sqrt(variance + eps) * weight + bias (Ba et al., 2016).

        The variance is the mean squared deviation. Groups and out as in rms_norm.
        """
        self._norm(x, weight, bias, groups, out)
        args = (x, weight, bias, eps, groups, accumulate, out)
        self._emit("layer_norm", *args, parallel=parallel)

    def soft_cap(self, x: Floats, width: int, cap: float) -> None:
        """x[t] = cap * tanh(x[t] / cap), `width` elements, in place."""
        self._rows("x", x, width)
        if not cap > 0:
            raise InvalidInput(f"numbers cannot be capped at {cap}")
        self._emit("soft_cap", x, width, cap)

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
        bias: Floats | None = None,
        accumulate: bool = False,
        parallel: bool = False,
    ) -> None:
        """out[t] = weight x[t] + bias."""
        self._activations("x", x, weight.cols)
        self._rows("out", out, weight.rows)
        self._bias("bias", bias, weight.rows)
        fine = isinstance(x, FineActivations) and weight.dtype in QUANTIZED
        name = "matmul_fine" if fine else "matmul"
        self._emit(name, x, weight, bias, accumulate, out, parallel=parallel)

    def rope(
        self,
        x: Floats,
        heads: int,
        head_dim: int,
        positions: Integers,
        cos: Floats,
        sin: Floats,
        style: str,
        *,
        parallel: bool = False,
    ) -> None:
        """Rotate the first elements of every head of x in place by its position (Su et al., 2021).

        cos, sin float32 [positions, pairs], 2 * pairs <= head_dim; style as in RopeSpec.
        """
        if cos.shape != sin.shape or cos.ndim != 2 or style not in ("interleaved", "half"):
            raise InvalidInput(f"rope: tables {cos.shape} and {sin.shape}, style {style!r}")
        if not 2 <= 2 * cos.shape[1] <= head_dim or heads < 1:
            raise InvalidInput(f"rope: {cos.shape[1]} pairs in {heads} heads of {head_dim}")
        for name, table in (("cos", cos), ("sin", sin)):
            self._contiguous(name, table, np.float32)
        self._vector("positions", positions, np.int64)
        self._rows("x", x, heads * head_dim)
        args = (x, heads, head_dim, positions, cos, sin, style)
        self._emit("rope", *args, parallel=parallel)

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
        scoring: Scoring,
        layer: int,
        positions: Integers,
        kv: KVRows,
        out: Floats,
    ) -> None:
        """out[t] = softmax(scores of q) V over the positions of t's sequence up to positions[t]."""
        self._kv(kv, layer, positions)
        if heads < 1 or heads % kv.kv_heads:
            raise InvalidInput(f"{heads} heads cannot share {kv.kv_heads} key/value heads")
        if len(scoring.slopes) not in (0, heads):
            raise InvalidInput(f"{len(scoring.slopes)} slopes for {heads} heads")
        self._rows("queries", queries, heads * kv.head_dim)
        self._rows("out", out, heads * kv.head_dim)
        self._emit("attend", queries, heads, scoring, layer, positions, kv, out)

    def ffn_hidden(
        self,
        x: Activations,
        ffn: TileFFN | RowFFN,
        function: Nonlinearity | str,
        out: Activations,
        *,
        gate_bias: Floats | None = None,
        up_bias: Floats | None = None,
    ) -> None:
        """out[t] = function(gate x[t] + gate_bias) * (up x[t] + up_bias), also in int8 for tiles
        of a quantised down; without gates function(up x[t] + up_bias). A name stands for the
        function of that name with nothing special.

        Biases are of all neurons or, for RowFFN, of those in its table, in its order; neurons that
        only fill a unit stay 0, and out keeps what it holds past a RowFFN's count.
        """
        act = Nonlinearity(function) if isinstance(function, str) else function
        if act.up_relu and not ffn.gated:
            raise InvalidInput("a feed-forward without gates has no second function for up")
        if gate_bias is not None and not ffn.gated:
            raise InvalidInput("a feed-forward without gates takes no bias for them")
        neurons = len(ffn.table) if isinstance(ffn, RowFFN) else ffn.neurons
        self._bias("gate_bias", gate_bias, neurons)
        self._bias("up_bias", up_bias, neurons)
        self._activations("x", x, ffn.width)
        args = (x, ffn, act, gate_bias, up_bias, out)
        if isinstance(ffn, RowFFN):
            self._activations("out", out, len(ffn.table))
            self._emit("row_hidden", *args)
        else:
            self._activations("out", out, ffn.padded_neurons)
            self._emit("ffn_hidden", *args)

    def ffn_down(
        self,
        h: Activations,
        ffn: TileFFN | RowFFN,
        out: Floats,
        *,
        bias: Floats | None = None,
        accumulate: bool = False,
    ) -> None:
        """out[t] = down h[t] + bias."""
        self._rows("out", out, ffn.width)
        self._bias("bias", bias, ffn.width)
        if isinstance(ffn, RowFFN):
            self._activations("h", h, len(ffn.table))
            self._emit("row_down", h, ffn, bias, accumulate, out)
        else:
            self._activations("h", h, ffn.padded_neurons)
            self._emit("ffn_down", h, ffn, bias, accumulate, out)

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

    def _bias(self, name: str, bias: Floats | None, length: int) -> None:
        if bias is None:
            return
        self._contiguous(name, bias, np.float32)
        if bias.shape != (length,):
            raise InvalidInput(f"{name}: shape {bias.shape}, expected ({length},)")

    def _norm(
        self, x: Floats, weight: Floats, bias: Floats | None, groups: int, out: Floats
    ) -> None:
        width = len(weight)
        self._vector("weight", weight, np.float32, length=width)
        self._bias("bias", bias, width)
        if groups < 1 or width % groups or (groups > 1 and width // groups % 16):
            raise InvalidInput(
                f"{width} weights for {groups} groups: several groups are normed if each has a "
                "multiple of 16 elements"
            )
        self._rows("x", x, width)
        self._rows("out", out, width)

    def _activations(self, name: str, x: Activations | FineActivations, width: int) -> None:
        self._rows(name, x.values, width)

    def _kv(self, kv: KVRows, layer: int, positions: Integers) -> None:
        self._vector("positions", positions, np.int64)
        if len(kv.table) < self.capacity or layer < 0:
            raise InvalidInput(f"layer {layer}: the key/value table has {len(kv.table)} rows")
