"""The CPU's program: steps become arrays of native addresses that a team of threads walks."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.kernels.cpu import (
    activation,
    attention,
    bundle,
    dense,
    elementwise,
    feed_forward,
    kv_store,
    norms,
)
from flashllm.kernels.jit import Op
from flashllm.kernels.program import Program
from flashllm.kernels.team import Team
from flashllm.kernels.weights import (
    KV_NAMES,
    QUANTIZED,
    TILE_ROWS,
    Activations,
    FineActivations,
    Floats,
    KVRows,
    RowFFN,
    Scoring,
    TileFFN,
    TileMatrix,
    padded,
)

Encoded = tuple[Op, list[int]]
Integers = NDArray[np.int64]
_NONE: Floats = np.zeros(16, np.float32)
"""What kernels add where there is no bias, always the same 16 zeros."""
_WIDEST = 1 << 30
"""A window beyond any position: kernels compare lanes as int32."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """What all programs of a team share: a team runs one at a time.

    scratch: arrays by shape; steps that use them begin only when all earlier ones are done. ops:
    the kernels of all steps.
    """

    scratch: dict[tuple[int, int], Floats] = dataclasses.field(default_factory=dict)
    ops: set[Op] = dataclasses.field(default_factory=set)


class CPUProgram(Program):
    """Native instructions and the buffers they point to, which it keeps alive."""

    def __init__(self, capacity: int, team: Team, shared: Shared):
        super().__init__(capacity)
        self._team = team
        self._shared = shared
        self._steps: list[tuple[Op, Integers, bool]] = []
        self._kept: list[Any] = []
        self._instructions: Integers | None = None

    def run(self, rows: int) -> None:
        """Execute the steps on rows 0 .. rows-1; the first run compiles what it needs."""
        self.check_rows(rows)
        if self._instructions is None:
            self._instructions = np.array(
                [
                    (op.address, not parallel, args.ctypes.data)
                    for op, args, parallel in self._steps
                ],
                np.int64,
            ).reshape(-1)
        self._team.run(self._instructions.ctypes.data, len(self._steps), rows)

    def _emit(self, name: str, *args: Any, parallel: bool = False) -> None:
        encode: Callable[..., Encoded] = getattr(self, f"_encode_{name}")
        op, words = encode(*args)
        self._shared.ops.add(op)
        self._steps.append((op, np.array(words, np.int64), parallel))
        self._kept.append(args)
        self._instructions = None

    def _scratch(self, shape: tuple[int, int]) -> Floats:
        """Floats that hold nothing between two steps: one array for all steps of this shape."""
        array = self._shared.scratch.setdefault(shape, np.zeros(shape, np.float32))
        self._kept.append(array)
        return array

    def _whole_vectors(self, values: Floats, length: int = 0) -> Floats:
        """A copy with zeros up to whole vectors, and to at least `length` elements."""
        full = np.zeros(padded(max(len(values), length)), np.float32)
        full[: len(values)] = values
        self._kept.append(full)
        return full

    def _bias_words(self, bias: Floats | None, step: int, length: int = 0) -> list[int]:
        """Where a bias is, and how far it moves on where kernels move on: not at all if none."""
        return [_at(_NONE), 0] if bias is None else [_at(self._whole_vectors(bias, length)), step]

    def _count(self, ffn: RowFFN) -> int:
        """Where the number of neurons to compute is; one that never changes if there is none."""
        count = np.array([len(ffn.table)], np.int64) if ffn.count is None else ffn.count
        self._kept.append(count)
        return _at(count)

    # ------------------------------------------------------------ one encoder per step

    def _encode_embed(
        self, indices: Integers, weight: TileMatrix, scale: float, accumulate: bool, out: Floats
    ) -> Encoded:
        words = [_at(indices), _at(weight.table), weight.panels_per_unit, weight.blocks]
        words += [weight.cols, *_rows(out), _bits(scale), int(accumulate)]
        return _pick(elementwise, "embed", weight.dtype), words

    def _encode_copy(self, x: Floats, width: int, out: Floats) -> Encoded:
        return elementwise.copy, [*_rows(x), -(-width // 16), *_rows(out)]

    def _encode_rms_norm(self, *args: Any) -> Encoded:
        return norms.rms_norm, self._norm_words(*args)

    def _encode_layer_norm(self, *args: Any) -> Encoded:
        return norms.layer_norm, self._norm_words(*args)

    def _norm_words(
        self,
        x: Floats,
        weight: Floats,
        bias: Floats | None,
        eps: float,
        groups: int,
        accumulate: bool,
        out: Floats,
    ) -> list[int]:
        words = [*_rows(x), groups, len(weight) // groups, _at(self._whole_vectors(weight))]
        words += [*self._bias_words(bias, 1), _bits(eps), int(accumulate)]
        return [*words, *_rows(out)]

    def _encode_soft_cap(self, x: Floats, width: int, cap: float) -> Encoded:
        return elementwise.soft_cap, [*_rows(x), -(-width // 16), _bits(cap)]

    def _encode_quantize(self, x: Activations) -> Encoded:
        values, codes, scales, sums, stride = _activations(x)
        return activation.quantize, [values, codes, scales, sums, stride // 32]

    def _encode_quantize_fine(self, x: FineActivations) -> Encoded:
        values, codes, scales, sums, stride = _activations(x.rows)
        words = [_at(x.values), values, codes, scales, sums, stride // 32]
        return activation.quantize_fine, words

    def _encode_matmul(
        self,
        x: Activations | FineActivations,
        weight: TileMatrix,
        bias: Floats | None,
        accumulate: bool,
        out: Floats,
    ) -> Encoded:
        inputs = _activations(x) if isinstance(x, Activations) else _floats_alone(x.values)
        words = [*inputs, *_panels(weight), *_rows(out), int(accumulate)]
        return _pick(dense, "matmul", weight.dtype), [*words, *self._bias_words(bias, 64)]

    def _encode_matmul_fine(
        self,
        x: FineActivations,
        weight: TileMatrix,
        bias: Floats | None,
        accumulate: bool,
        out: Floats,
    ) -> Encoded:
        words = [*_activations(x.rows), *_panels(weight), *_rows(out), int(accumulate)]
        return _pick(dense, "matmul_fine", weight.dtype), [*words, *self._bias_words(bias, 64)]

    def _encode_rope(
        self,
        x: Floats,
        heads: int,
        head_dim: int,
        positions: Integers,
        cos: Floats,
        sin: Floats,
        style: str,
    ) -> Encoded:
        half = cos.shape[1]
        step, apart = (2, 1) if style == "interleaved" else (1, half)
        words = [*_rows(x), heads, head_dim, half, _at(positions), _at(cos), _at(sin)]
        return elementwise.rope, [*words, step, apart]

    def _encode_write_kv(
        self, keys: Floats, values: Floats, layer: int, positions: Integers, kv: KVRows
    ) -> Encoded:
        words = [*_rows(keys), *_rows(values), kv.kv_heads, kv.head_dim, layer]
        words += [_at(positions), _at(kv.table)]
        return _pick(kv_store, "write_kv", KV_NAMES[kv.dtype.name]), words

    def _encode_attend(
        self,
        queries: Floats,
        heads: int,
        scoring: Scoring,
        layer: int,
        positions: Integers,
        kv: KVRows,
        out: Floats,
    ) -> Encoded:
        scratch = self._scratch((self._team.threads, attention.SCRATCH // 4))
        words = [*_rows(queries), heads, _bits(scoring.scale), layer, _at(positions), _at(kv.table)]
        words += [*_rows(out), kv.kv_heads, kv.head_dim, _at(scratch)]
        stored = KV_NAMES[kv.dtype.name]
        if scoring.plain:
            return _pick(attention, "attend", stored), words
        slopes = self._whole_vectors(np.array(scoring.slopes, np.float32))
        words += [min(scoring.window or _WIDEST, _WIDEST), _bits(scoring.soft_cap or 0.0)]
        words += [_at(slopes), 4] if scoring.slopes else [_at(_NONE), 0]
        return _pick(attention, "attend_by_rule", stored), words

    def _encode_ffn_hidden(
        self,
        x: Activations,
        ffn: TileFFN,
        function: str,
        gate_bias: Floats | None,
        up_bias: Floats | None,
        out: Activations,
    ) -> Encoded:
        words = [*_activations(x), *_activations(out), _at(ffn.table), len(ffn.table)]
        words += [ffn.blocks_per_unit, -(-ffn.width // 32), activation.FUNCTIONS[function]]
        words += [int(ffn.down_dtype in QUANTIZED), int(ffn.gated)]
        for bias in (gate_bias, up_bias) if ffn.gated else (up_bias, None):
            words += self._bias_words(bias, 64, ffn.padded_neurons)
        return _pick(feed_forward, "ffn_hidden", ffn.dtype), words

    def _encode_ffn_down(
        self, h: Activations, ffn: TileFFN, bias: Floats | None, accumulate: bool, out: Floats
    ) -> Encoded:
        partial = self._scratch((self.capacity, out.shape[1]))
        words = [_at(ffn.table), len(ffn.table), ffn.blocks_per_unit, ffn.input_bytes]
        words += [-(-ffn.width // TILE_ROWS), _at(partial), *_rows(out), int(accumulate)]
        words += self._bias_words(bias, 64)
        return _pick(feed_forward, "ffn_down", ffn.down_dtype), [*_activations(h), *words]

    def _encode_row_hidden(
        self,
        x: Activations,
        ffn: RowFFN,
        function: str,
        gate_bias: Floats | None,
        up_bias: Floats | None,
        out: Activations,
    ) -> Encoded:
        words = [_at(ffn.table), self._count(ffn), ffn.part_bytes, padded(ffn.width)]
        words += [*_rows(out.values), activation.FUNCTIONS[function], int(ffn.gated)]
        # Not copied: like the table, a bias in its order may change between runs.
        for bias in (gate_bias, up_bias) if ffn.gated else (up_bias, None):
            words += [_at(_NONE), 0] if bias is None else [_at(bias), 4]
        return _pick(bundle, "row_hidden", ffn.dtype), [*_activations(x), *words]

    def _encode_row_down(
        self, h: Activations, ffn: RowFFN, bias: Floats | None, accumulate: bool, out: Floats
    ) -> Encoded:
        words = [*_rows(h.values), _at(ffn.table), self._count(ffn), ffn.input_bytes]
        words += [ffn.part_bytes]
        words += [padded(ffn.width), *_rows(out), int(accumulate), *self._bias_words(bias, 64)]
        return _pick(bundle, "row_down", ffn.dtype), words


def _pick(module: Any, kernel: str, dtype: str) -> Op:
    op: Op = getattr(module, f"{kernel}_{dtype}")
    return op


def _at(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _rows(array: Floats) -> list[int]:
    return [_at(array), array.shape[1]]


def _panels(weight: TileMatrix) -> list[int]:
    return [_at(weight.table), weight.panels, weight.panels_per_unit, weight.blocks]


def _floats_alone(values: Floats) -> list[int]:
    return [_at(values), 0, 0, 0, values.shape[1]]


def _activations(x: Activations) -> list[int]:
    return [_at(x.values), _at(x.codes), _at(x.scales), _at(x.sums), x.stride]


def _bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])
