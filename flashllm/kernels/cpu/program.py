"""The CPU's program: steps become arrays of native addresses that a team of threads walks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.kernels.cpu import (
    activation,
    attention,
    bitmap_products,
    bundle,
    dense,
    elementwise,
    feed_forward,
    kv_store,
    norms,
)
from flashllm.kernels.cpu.words import (
    Encoded,
    activations,
    address,
    bits,
    floats_alone,
    nonlinearity,
    panels,
    pick,
    rows,
)
from flashllm.kernels.jit import Op
from flashllm.kernels.program import Program
from flashllm.kernels.team import Team
from flashllm.kernels.weights import (
    KV_NAMES,
    QUANTIZED,
    TILE_BYTES,
    TILE_ROWS,
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

    def _tile_scratch(self, weight: TileMatrix | TileFFN, dtype: str, tiles: int) -> list[int]:
        """Where each thread may expand a panel of so many tiles, and how far apart these are."""
        if not weight.bitmap:
            return [0, 0]
        scratch = self._scratch((self._team.threads, tiles * TILE_BYTES[dtype] // 4))
        return [address(scratch), scratch.strides[0]]

    def _whole_vectors(self, values: Floats, length: int = 0) -> Floats:
        """A copy with zeros up to whole vectors, and to at least `length` elements."""
        full = np.zeros(padded(max(len(values), length)), np.float32)
        full[: len(values)] = values
        self._kept.append(full)
        return full

    def _bias_words(self, bias: Floats | None, step: int, length: int = 0) -> list[int]:
        """Where a bias is, and how far it moves on where kernels move on: not at all if none."""
        return (
            [address(_NONE), 0]
            if bias is None
            else [address(self._whole_vectors(bias, length)), step]
        )

    def _count(self, ffn: RowFFN) -> int:
        """Where the number of neurons to compute is; one that never changes if there is none."""
        count = np.array([len(ffn.table)], np.int64) if ffn.count is None else ffn.count
        self._kept.append(count)
        return address(count)

    # ------------------------------------------------------------ one encoder per step

    def _encode_embed(
        self, indices: Integers, weight: TileMatrix, scale: float, accumulate: bool, out: Floats
    ) -> Encoded:
        words = [address(indices), address(weight.table), weight.panels_per_unit, weight.blocks]
        words += [weight.cols, *rows(out), bits(scale), int(accumulate)]
        return pick(elementwise, "embed", weight.dtype), words

    def _encode_copy(self, x: Floats, width: int, out: Floats) -> Encoded:
        return elementwise.copy, [*rows(x), -(-width // 16), *rows(out)]

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
        words = [*rows(x), groups, len(weight) // groups, address(self._whole_vectors(weight))]
        words += [*self._bias_words(bias, 1), bits(eps), int(accumulate)]
        return [*words, *rows(out)]

    def _encode_soft_cap(self, x: Floats, width: int, cap: float) -> Encoded:
        return elementwise.soft_cap, [*rows(x), -(-width // 16), bits(cap)]

    def _encode_quantize(self, x: Activations) -> Encoded:
        values, codes, scales, sums, stride = activations(x)
        return activation.quantize, [values, codes, scales, sums, stride // 32]

    def _encode_quantize_fine(self, x: FineActivations) -> Encoded:
        values, codes, scales, sums, stride = activations(x.rows)
        words = [address(x.values), values, codes, scales, sums, stride // 32]
        return activation.quantize_fine, words

    def _encode_matmul(
        self,
        x: Activations | FineActivations,
        weight: TileMatrix,
        bias: Floats | None,
        accumulate: bool,
        out: Floats,
    ) -> Encoded:
        inputs = activations(x) if isinstance(x, Activations) else floats_alone(x.values)
        words = [*inputs, *panels(weight), *rows(out), int(accumulate)]
        words += self._bias_words(bias, 64)
        words += self._tile_scratch(weight, weight.dtype, weight.blocks)
        return pick(_stored(weight, dense), "matmul", weight.dtype), words

    def _encode_matmul_fine(
        self,
        x: FineActivations,
        weight: TileMatrix,
        bias: Floats | None,
        accumulate: bool,
        out: Floats,
    ) -> Encoded:
        words = [*activations(x.rows), *panels(weight), *rows(out), int(accumulate)]
        words += self._bias_words(bias, 64)
        words += self._tile_scratch(weight, weight.dtype, weight.blocks)
        return pick(_stored(weight, dense), "matmul_fine", weight.dtype), words

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
        words = [*rows(x), heads, head_dim, half, address(positions), address(cos), address(sin)]
        return elementwise.rope, [*words, step, apart]

    def _encode_write_kv(
        self, keys: Floats, values: Floats, layer: int, positions: Integers, kv: KVRows
    ) -> Encoded:
        words = [*rows(keys), *rows(values), kv.kv_heads, kv.head_dim, layer]
        words += [address(positions), address(kv.table)]
        return pick(kv_store, "write_kv", KV_NAMES[kv.dtype.name]), words

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
        words = [
            *rows(queries),
            heads,
            bits(scoring.scale),
            layer,
            address(positions),
            address(kv.table),
        ]
        words += [*rows(out), kv.kv_heads, kv.head_dim, address(scratch)]
        stored = KV_NAMES[kv.dtype.name]
        if scoring.plain:
            return pick(attention, "attend", stored), words
        slopes = self._whole_vectors(np.array(scoring.slopes, np.float32))
        words += [min(scoring.window or _WIDEST, _WIDEST), bits(scoring.soft_cap or 0.0)]
        words += [address(slopes), 4] if scoring.slopes else [address(_NONE), 0]
        return pick(attention, "attend_by_rule", stored), words

    def _encode_ffn_hidden(
        self,
        x: Activations,
        ffn: TileFFN,
        act: Nonlinearity,
        gate_bias: Floats | None,
        up_bias: Floats | None,
        out: Activations,
    ) -> Encoded:
        words = [*activations(x), *activations(out), address(ffn.table), len(ffn.table)]
        words += [ffn.blocks_per_unit, -(-ffn.width // 32), *nonlinearity(act)]
        words += [int(ffn.down_dtype in QUANTIZED), int(ffn.gated)]
        for bias in (gate_bias, up_bias) if ffn.gated else (up_bias, None):
            words += self._bias_words(bias, 64, ffn.padded_neurons)
        words += self._tile_scratch(ffn, ffn.dtype, -(-ffn.width // 32))
        return pick(_stored(ffn, feed_forward), "ffn_hidden", ffn.dtype), words

    def _encode_ffn_down(
        self, h: Activations, ffn: TileFFN, bias: Floats | None, accumulate: bool, out: Floats
    ) -> Encoded:
        words = [address(ffn.table), len(ffn.table), ffn.blocks_per_unit, ffn.input_bytes]
        words += [-(-ffn.width // TILE_ROWS), *rows(out), int(accumulate)]
        words += self._bias_words(bias, 64)
        words += self._tile_scratch(ffn, ffn.down_dtype, ffn.blocks_per_unit)
        op = pick(_stored(ffn, feed_forward), "ffn_down", ffn.down_dtype)
        return op, [*activations(h), *words]

    def _encode_row_hidden(
        self,
        x: Activations,
        ffn: RowFFN,
        act: Nonlinearity,
        gate_bias: Floats | None,
        up_bias: Floats | None,
        out: Activations,
    ) -> Encoded:
        words = [address(ffn.table), self._count(ffn), ffn.part_bytes, padded(ffn.width)]
        words += [*rows(out.values), *nonlinearity(act), int(ffn.gated)]
        # Not copied: like the table, a bias in its order may change between runs.
        for bias in (gate_bias, up_bias) if ffn.gated else (up_bias, None):
            words += [address(_NONE), 0] if bias is None else [address(bias), 4]
        return pick(bundle, "row_hidden", ffn.dtype), [*activations(x), *words]

    def _encode_row_down(
        self, h: Activations, ffn: RowFFN, bias: Floats | None, accumulate: bool, out: Floats
    ) -> Encoded:
        words = [*rows(h.values), address(ffn.table), self._count(ffn), ffn.input_bytes]
        words += [padded(ffn.width), *rows(out), int(accumulate), *self._bias_words(bias, 64)]
        return pick(bundle, "row_down", ffn.dtype), words


def _stored(weight: TileMatrix | TileFFN, products: ModuleType) -> ModuleType:
    """Which module has the products over tiles as these are stored."""
    return bitmap_products if weight.bitmap else products
