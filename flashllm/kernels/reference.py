"""The slow, obvious numpy twin of every kernel, in float32: the specification.

Each function takes the arguments of the Program method of its name, after the number of rows.
Weights are decoded to float32; activations are not quantised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.kernels.decoding import matrix, memory, row_parts, tile_down, tile_inputs
from flashllm.kernels.program import Integers, Program
from flashllm.kernels.weights import (
    Q8_SMALLEST,
    Activations,
    FineActivations,
    Floats,
    KVRows,
    Nonlinearity,
    RowFFN,
    Scoring,
    TileFFN,
    TileMatrix,
    q8_keys,
    q8_values,
)

_ERF = np.frompyfunc(math.erf, 1, 1)


def _put(out: Floats, result: Floats, accumulate: bool) -> None:
    out[:] = out + result if accumulate else result


def embed(
    rows: int, indices: Integers, weight: TileMatrix, scale: float, accumulate: bool, out: Floats
) -> None:
    """Twin of Program.embed."""
    found = matrix(weight)[indices[:rows]] * np.float32(scale)
    _put(out[:rows, : weight.cols], found, accumulate)


def copy(rows: int, x: Floats, width: int, out: Floats) -> None:
    """Twin of Program.copy."""
    out[:rows, :width] = x[:rows, :width]


def rms_norm(
    rows: int,
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    eps: float,
    groups: int,
    accumulate: bool,
    out: Floats,
) -> None:
    """Twin of Program.rms_norm."""
    v = x[:rows, : len(weight)].reshape(rows, groups, -1).astype(np.float64)
    normed = v / np.sqrt(np.mean(v**2, axis=2, keepdims=True) + eps)
    _put_normed(rows, normed, weight, bias, accumulate, out)


def layer_norm(
    rows: int,
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    eps: float,
    groups: int,
    accumulate: bool,
    out: Floats,
) -> None:
    """Twin of Program.layer_norm."""
    v = x[:rows, : len(weight)].reshape(rows, groups, -1).astype(np.float64)
    centred = v - v.mean(axis=2, keepdims=True)
    normed = centred / np.sqrt(np.mean(centred**2, axis=2, keepdims=True) + eps)
    _put_normed(rows, normed, weight, bias, accumulate, out)


def _put_normed(
    rows: int,
    normed: NDArray[np.float64],
    weight: Floats,
    bias: Floats | None,
    accumulate: bool,
    out: Floats,
) -> None:
    result = normed.reshape(rows, -1) * weight + (0 if bias is None else bias)
    _put(out[:rows, : len(weight)], result.astype(np.float32), accumulate)


def soft_cap(rows: int, x: Floats, width: int, cap: float) -> None:
    """Twin of Program.soft_cap."""
    x[:rows, :width] = cap * np.tanh(x[:rows, :width] / cap)


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
    bias: Floats | None,
    accumulate: bool,
    out: Floats,
) -> None:
    """Twin of Program.matmul."""
    y = _plus(x.values[:rows, : weight.cols] @ matrix(weight).T, bias)
    _put(out[:rows, : weight.rows], y, accumulate)


def _plus(y: Floats, bias: Floats | None) -> Floats:
    return y if bias is None else y + bias[: y.shape[1]]


def rope(
    rows: int,
    x: Floats,
    heads: int,
    head_dim: int,
    positions: Integers,
    cos: Floats,
    sin: Floats,
    style: str,
) -> None:
    """Twin of Program.rope."""
    half = cos.shape[1]
    whole = x[:rows, : heads * head_dim].reshape(rows, heads, head_dim).copy()
    pairs = whole[..., : 2 * half].copy()
    c, s = (table[positions[:rows], None, :] for table in (cos, sin))
    a = np.s_[..., 0::2] if style == "interleaved" else np.s_[..., :half]
    b = np.s_[..., 1::2] if style == "interleaved" else np.s_[..., half:]
    rotated = np.empty_like(pairs)
    rotated[a] = pairs[a] * c - pairs[b] * s
    rotated[b] = pairs[a] * s + pairs[b] * c
    whole[..., : 2 * half] = rotated
    x[:rows, : heads * head_dim] = whole.reshape(rows, -1)


def _cache(kv: KVRows, row: int, layer: int, head: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One head's keys [blocks, dim, 16] and values [positions, dim] in a row's sequence; in q8
    both are blocks of q8_keys and q8_values.
    """
    keys, values, size = (int(word) for word in kv.table[row])
    at = (layer * kv.kv_heads + head) * size
    if kv.dtype == np.int8:
        k = memory(keys + at, size).view(q8_keys(kv.head_dim))
        return k, memory(values + at, size).view(q8_values(kv.head_dim))
    k = memory(keys + at, size).view(kv.dtype).reshape(-1, kv.head_dim, 16)
    return k, memory(values + at, size).view(kv.dtype).reshape(-1, kv.head_dim)


def _history(kv: KVRows, row: int, layer: int, head: int) -> tuple[Floats, Floats]:
    """One head's keys and values, float32 [positions, dim] each."""
    k, v = _cache(kv, row, layer, head)
    if kv.dtype == np.int8:
        keys = k["codes"].transpose(0, 2, 1) * k["scales"][:, :, None]
        values = v["codes"] * v["scales"][:, :, None]
        return keys.reshape(-1, kv.head_dim), values.reshape(-1, kv.head_dim)
    keys = k.transpose(0, 2, 1).reshape(-1, kv.head_dim).astype(np.float32)
    return keys, v.astype(np.float32)


def _codes(x: Floats) -> tuple[NDArray[np.int8], np.float32]:
    """A vector as multiples, -127 to 127, of a scale."""
    largest = np.abs(x).max()
    if largest < Q8_SMALLEST:
        return np.zeros(x.shape, np.int8), np.float32(0)
    codes = np.rint(x * (np.float32(127) / largest)).astype(np.int8)
    return codes, largest / np.float32(127)


def write_kv(
    rows: int, keys: Floats, values: Floats, layer: int, positions: Integers, kv: KVRows
) -> None:
    """Twin of Program.write_kv."""
    for t in range(rows):
        block, lane = divmod(int(positions[t]), 16)
        for head in range(kv.kv_heads):
            part = np.s_[head * kv.head_dim : (head + 1) * kv.head_dim]
            k, v = _cache(kv, t, layer, head)
            if kv.dtype == np.int8:
                k["codes"][block, :, lane], k["scales"][block, lane] = _codes(keys[t, part])
                v["codes"][block, lane], v["scales"][block, lane] = _codes(values[t, part])
            else:
                largest = np.finfo(kv.dtype).max
                k[block, :, lane] = np.clip(keys[t, part], -largest, largest)
                v[positions[t]] = np.clip(values[t, part], -largest, largest)


def attend(
    rows: int,
    queries: Floats,
    heads: int,
    scoring: Scoring,
    layer: int,
    positions: Integers,
    kv: KVRows,
    out: Floats,
) -> None:
    """Twin of Program.attend."""
    dim = kv.head_dim
    for t in range(rows):
        at = int(positions[t])
        first = max(0, at + 1 - (scoring.window or at + 1))
        seen = np.arange(first, at + 1)
        for head in range(heads):
            keys, values = (x[seen] for x in _history(kv, t, layer, head * kv.kv_heads // heads))
            part = np.s_[t, head * dim : (head + 1) * dim]
            scores = keys @ queries[part] * np.float32(scoring.scale)
            if scoring.soft_cap is not None:
                scores = scoring.soft_cap * np.tanh(scores / scoring.soft_cap)
            if scoring.slopes:
                scores = scores - scoring.slopes[head] * (at - seen)
            weights = np.exp(scores - scores.max())
            out[part] = weights / weights.sum() @ values


def _activate(x: Floats, act: Nonlinearity) -> Floats:
    function = act.function
    if function == "relu":
        return np.where(x > np.float32(act.threshold), x, np.float32(0))
    if function == "relu2":
        return np.maximum(x, 0) ** 2
    if function == "gelu_erf":
        exact: Floats = (0.5 * x * (1 + _ERF(x / math.sqrt(2)).astype(np.float64))).astype(
            np.float32
        )
        return exact
    z = x if function == "silu" else 1.5957691216057308 * (x + 0.044715 * x**3)
    result: Floats = (x / (1 + np.exp(-np.maximum(z, -87)))).astype(np.float32)
    return result


def ffn_hidden(
    rows: int,
    x: Activations,
    ffn: TileFFN | RowFFN,
    act: Nonlinearity,
    gate_bias: Floats | None,
    up_bias: Floats | None,
    out: Activations,
) -> None:
    """Twin of Program.ffn_hidden."""
    inputs = tile_inputs(ffn) if isinstance(ffn, TileFFN) else row_parts(ffn)[:-1]
    neurons = ffn.neurons if isinstance(ffn, TileFFN) else len(ffn.computed)
    v = x.values[:rows, : ffn.width]
    up = _plus(v @ inputs[-1][:neurons].T, up_bias)
    if ffn.gated:
        gate = _activate(_plus(v @ inputs[0][:neurons].T, gate_bias), act)
        hidden = gate * (np.maximum(up, 0) if act.up_relu else up)
    else:
        hidden = _activate(up, act)
    if isinstance(ffn, TileFFN):
        out.values[:rows] = 0
    out.values[:rows, :neurons] = hidden


def ffn_down(
    rows: int,
    h: Activations,
    ffn: TileFFN | RowFFN,
    bias: Floats | None,
    accumulate: bool,
    out: Floats,
) -> None:
    """Twin of Program.ffn_down."""
    down = tile_down(ffn).T if isinstance(ffn, TileFFN) else row_parts(ffn)[-1]
    y = _plus(h.values[:rows, : len(down)] @ down, bias)
    _put(out[:rows, : ffn.width], y, accumulate)


_STEPS: dict[str, Callable[..., None]] = {
    step.__name__: step
    for step in (
        embed,
        copy,
        rms_norm,
        layer_norm,
        soft_cap,
        quantize,
        quantize_fine,
        matmul,
        rope,
        write_kv,
        attend,
        ffn_hidden,
        ffn_down,
    )
} | {"matmul_fine": matmul, "row_hidden": ffn_hidden, "row_down": ffn_down}


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
