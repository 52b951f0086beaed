"""Dot products of one tile, 16 rows x 32 columns, with 1 or 4 tokens, for every weight dtype.

A lane is a row, so nothing is summed across lanes and any width that is a multiple of 32 works.
`dot_1` and `dot_4` do the same operations per token in the same order: a token's result does not
depend on how many others came with it. docs/format.md gives the bytes of a tile.

x is the tuple (values, codes, scales, sums, width) of Activations' addresses; t is a token, b the
block of 32 columns.
"""

from __future__ import annotations

from typing import Any

from numba import float32, int32, types
from numba.core.imputils import lower_constant
from numba.extending import models, overload, register_model, typeof_impl

from flashllm.kernels import jit
from flashllm.kernels.simd import (
    add,
    add_i32,
    broadcast_4,
    dot_u4,
    dot_u8,
    fma,
    high_nibbles,
    load_bf16,
    load_bfloat,
    load_byte,
    load_f16,
    load_f32,
    load_float,
    load_half,
    load_i8_as_float,
    load_i32,
    load_u8,
    low_nibbles,
    mul,
    splat,
    splat_i32,
    to_float,
    zero,
)
from flashllm.kernels.weights import TILE_BYTES


class Format:
    """A weight dtype as a value that kernels specialise on when they are compiled.

    bitmap: tiles are stored as bitmaps and what is not zero, see bitmaps.py.
    """

    def __init__(self, name: str, *, bitmap: bool = False):
        self.name = name
        self.bitmap = bitmap
        self.tile_bytes = TILE_BYTES[name]


F32 = Format("f32")
F16 = Format("f16")
BF16 = Format("bf16")
Q8 = Format("q8")
Q4 = Format("q4")
Q4M = Format("q4m")
F16_BITMAP = Format("f16", bitmap=True)
BF16_BITMAP = Format("bf16", bitmap=True)
Q8_BITMAP = Format("q8", bitmap=True)
Q4_BITMAP = Format("q4", bitmap=True)


class _FormatType(types.Type):
    def __init__(self, format: Format):
        self.format = format
        super().__init__(name=f"Format({format.name}{', bitmap' if format.bitmap else ''})")


register_model(_FormatType)(models.OpaqueModel)


@typeof_impl.register(Format)
def _typeof_format(value: Format, context: Any) -> _FormatType:
    return _FormatType(value)


@lower_constant(_FormatType)
def _constant_format(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.get_dummy_value()


def tile_bytes(fmt):
    """Bytes of one tile of a format."""
    raise TypeError("for kernels only")


def element_bytes(fmt):
    """Bytes of one stored number of a float format; of q8, of one code."""
    raise TypeError("for kernels only")


def weight_at(fmt, tile, row, col):
    """One weight of a tile, as a float: for reading embedding rows."""
    raise TypeError("for kernels only")


def load_row_16(fmt, address):
    """16 stored floats of a float format, as f32x16; of q8, 16 signed codes."""
    raise TypeError("for kernels only")


def dot_1(fmt, tile, acc, x, t, b):
    """acc + the tile times token t."""
    raise TypeError("for kernels only")


def dot_4(fmt, tile, acc, x, t, b):
    """dot_1 for tokens t .. t+3; acc is a tuple of 4 vectors."""
    raise TypeError("for kernels only")


OPTIONS = {"fastmath": False, "error_model": "numpy"}


@overload(tile_bytes, jit_options=OPTIONS)
def _tile_bytes(fmt):
    size = fmt.format.tile_bytes
    return lambda fmt: size


@overload(element_bytes, jit_options=OPTIONS)
def _element_bytes(fmt):
    size = fmt.format.tile_bytes // 512
    return lambda fmt: size


@overload(weight_at, jit_options=OPTIONS)
def _weight_at(fmt, tile, row, col):
    return {
        "f32": lambda fmt, tile, row, col: load_float(tile + 64 * col + 4 * row),
        "f16": lambda fmt, tile, row, col: load_half(tile + 32 * col + 2 * row),
        "bf16": lambda fmt, tile, row, col: load_bfloat(tile + 32 * col + 2 * row),
        "q8": _q8_weight,
        "q4": _q4_weight,
        "q4m": _q4m_weight,
    }[fmt.format.name]


@overload(load_row_16, jit_options=OPTIONS)
def _load_row_16(fmt, address):
    return {
        "f32": lambda fmt, address: load_f32(address),
        "f16": lambda fmt, address: load_f16(address),
        "bf16": lambda fmt, address: load_bf16(address),
        "q8": lambda fmt, address: load_i8_as_float(address),
    }[fmt.format.name]


@overload(dot_1, jit_options=OPTIONS)
def _dot_1(fmt, tile, acc, x, t, b):
    return {"q8": _q8_1, "q4": _q4_1, "q4m": _q4m_1}.get(fmt.format.name, _float_1)


@overload(dot_4, jit_options=OPTIONS)
def _dot_4(fmt, tile, acc, x, t, b):
    return {"q8": _q8_4, "q4": _q4_4, "q4m": _q4m_4}.get(fmt.format.name, _float_4)


# ------------------------------------------------------------------ float tiles


def _float_1(fmt, tile, acc, x, t, b):
    """Four chains over the 32 columns, so that the latency of an addition is hidden."""
    values, _, _, _, width = x
    v = values + 4 * (t * width + 32 * b)
    step = tile_bytes(fmt) >> 5
    s0, s1, s2, s3 = zero(), zero(), zero(), zero()
    for k in range(0, 32, 4):
        w = tile + k * step
        s0 = fma(load_row_16(fmt, w), splat(load_float(v + 4 * k)), s0)
        s1 = fma(load_row_16(fmt, w + step), splat(load_float(v + 4 * k + 4)), s1)
        s2 = fma(load_row_16(fmt, w + 2 * step), splat(load_float(v + 4 * k + 8)), s2)
        s3 = fma(load_row_16(fmt, w + 3 * step), splat(load_float(v + 4 * k + 12)), s3)
    return add(acc, add(add(s0, s1), add(s2, s3)))


def _float_4(fmt, tile, acc, x, t, b):
    values, _, _, _, width = x
    v0 = values + 4 * (t * width + 32 * b)
    v1, v2, v3 = v0 + 4 * width, v0 + 8 * width, v0 + 12 * width
    step = tile_bytes(fmt) >> 5
    z = zero()
    s00, s01, s02, s03 = z, z, z, z
    s10, s11, s12, s13 = z, z, z, z
    s20, s21, s22, s23 = z, z, z, z
    s30, s31, s32, s33 = z, z, z, z
    for k in range(0, 32, 4):
        c = 4 * k
        w = load_row_16(fmt, tile + k * step)
        s00 = fma(w, splat(load_float(v0 + c)), s00)
        s10 = fma(w, splat(load_float(v1 + c)), s10)
        s20 = fma(w, splat(load_float(v2 + c)), s20)
        s30 = fma(w, splat(load_float(v3 + c)), s30)
        w = load_row_16(fmt, tile + (k + 1) * step)
        s01 = fma(w, splat(load_float(v0 + c + 4)), s01)
        s11 = fma(w, splat(load_float(v1 + c + 4)), s11)
        s21 = fma(w, splat(load_float(v2 + c + 4)), s21)
        s31 = fma(w, splat(load_float(v3 + c + 4)), s31)
        w = load_row_16(fmt, tile + (k + 2) * step)
        s02 = fma(w, splat(load_float(v0 + c + 8)), s02)
        s12 = fma(w, splat(load_float(v1 + c + 8)), s12)
        s22 = fma(w, splat(load_float(v2 + c + 8)), s22)
        s32 = fma(w, splat(load_float(v3 + c + 8)), s32)
        w = load_row_16(fmt, tile + (k + 3) * step)
        s03 = fma(w, splat(load_float(v0 + c + 12)), s03)
        s13 = fma(w, splat(load_float(v1 + c + 12)), s13)
        s23 = fma(w, splat(load_float(v2 + c + 12)), s23)
        s33 = fma(w, splat(load_float(v3 + c + 12)), s33)
    a0, a1, a2, a3 = acc
    return (
        add(a0, add(add(s00, s01), add(s02, s03))),
        add(a1, add(add(s10, s11), add(s12, s13))),
        add(a2, add(add(s20, s21), add(s22, s23))),
        add(a3, add(add(s30, s31), add(s32, s33))),
    )


# ------------------------------------------------------------------ quantised tiles
def _q8_weight(fmt, tile, row, col):
    code = load_byte(tile + 64 * (col >> 2) + 4 * row + (col & 3)) - 128
    return float32(float32(code) * load_half(tile + 512 + 2 * row))


@jit.inline
def _nibble(tile, row, col):
    byte = load_byte(tile + 64 * ((col & 15) >> 2) + 4 * row + (col & 3))
    return (byte >> 4) if col & 16 else (byte & 15)


def _q4_weight(fmt, tile, row, col):
    return float32(float32(_nibble(tile, row, col) - 8) * load_half(tile + 256 + 2 * row))


def _q4m_weight(fmt, tile, row, col):
    scaled = float32(_nibble(tile, row, col)) * load_half(tile + 256 + 2 * row)
    return float32(scaled + load_half(tile + 288 + 2 * row))


# A block's integer dot product is exact, so its order is free; the float part is one fma per block.


@jit.inline
def scaled_sum(acc, dots, scales, x, t, b):
    """acc + dots * (weight scales * the activation's scale)."""
    _, _, x_scales, _, width = x
    group = t * (width >> 5) + b
    return fma(to_float(dots), mul(scales, splat(load_float(x_scales + 4 * group))), acc)


@jit.inline
def centred(x, t, b, centre):
    """-centre * the sum of the activation's codes: codes are stored with an offset of `centre`."""
    _, _, _, sums, width = x
    return splat_i32(int32(-centre * load_i32(sums + 4 * (t * (width >> 5) + b))))


@jit.inline
def _nibble_dots(tile, x, t, b, start):
    """The 32 columns of a 4-bit tile; a byte holds column j and column 16 + j."""
    _, codes, _, _, width = x
    c = codes + t * width + 32 * b
    low, high = start, splat_i32(int32(0))
    for j in range(0, 16, 4):
        w = load_u8(tile + 16 * j)
        low = dot_u4(low, low_nibbles(w), broadcast_4(c + j))
        high = dot_u4(high, high_nibbles(w), broadcast_4(c + 16 + j))
    return add_i32(low, high)


@jit.inline
def _nibble_dots_4(tile, x, t, b, start):
    _, codes, _, _, width = x
    c0 = codes + t * width + 32 * b
    c1, c2, c3 = c0 + width, c0 + 2 * width, c0 + 3 * width
    s0, s1, s2, s3 = start
    for j in range(0, 16, 4):
        w = load_u8(tile + 16 * j)
        u = low_nibbles(w)
        s0 = dot_u4(s0, u, broadcast_4(c0 + j))
        s1 = dot_u4(s1, u, broadcast_4(c1 + j))
        s2 = dot_u4(s2, u, broadcast_4(c2 + j))
        s3 = dot_u4(s3, u, broadcast_4(c3 + j))
        u = high_nibbles(w)
        s0 = dot_u4(s0, u, broadcast_4(c0 + 16 + j))
        s1 = dot_u4(s1, u, broadcast_4(c1 + 16 + j))
        s2 = dot_u4(s2, u, broadcast_4(c2 + 16 + j))
        s3 = dot_u4(s3, u, broadcast_4(c3 + 16 + j))
    return s0, s1, s2, s3


def _q4_1(fmt, tile, acc, x, t, b):
    dots = _nibble_dots(tile, x, t, b, centred(x, t, b, 8))
    return scaled_sum(acc, dots, load_f16(tile + 256), x, t, b)


def _q4_4(fmt, tile, acc, x, t, b):
    start = (
        centred(x, t, b, 8),
        centred(x, t + 1, b, 8),
        centred(x, t + 2, b, 8),
        centred(x, t + 3, b, 8),
    )
    d0, d1, d2, d3 = _nibble_dots_4(tile, x, t, b, start)
    scales = load_f16(tile + 256)
    a0, a1, a2, a3 = acc
    return (
        scaled_sum(a0, d0, scales, x, t, b),
        scaled_sum(a1, d1, scales, x, t + 1, b),
        scaled_sum(a2, d2, scales, x, t + 2, b),
        scaled_sum(a3, d3, scales, x, t + 3, b),
    )


@jit.inline
def _minimum(acc, minimums, x, t, b):
    """acc + minimums * the sum of the activation over the block."""
    _, _, x_scales, sums, width = x
    group = t * (width >> 5) + b
    total = float32(load_i32(sums + 4 * group)) * load_float(x_scales + 4 * group)
    return fma(minimums, splat(float32(total)), acc)


def _q4m_1(fmt, tile, acc, x, t, b):
    dots = _nibble_dots(tile, x, t, b, splat_i32(int32(0)))
    acc = scaled_sum(acc, dots, load_f16(tile + 256), x, t, b)
    return _minimum(acc, load_f16(tile + 288), x, t, b)


def _q4m_4(fmt, tile, acc, x, t, b):
    none = splat_i32(int32(0))
    d0, d1, d2, d3 = _nibble_dots_4(tile, x, t, b, (none, none, none, none))
    scales, minimums = load_f16(tile + 256), load_f16(tile + 288)
    a0, a1, a2, a3 = acc
    return (
        _minimum(scaled_sum(a0, d0, scales, x, t, b), minimums, x, t, b),
        _minimum(scaled_sum(a1, d1, scales, x, t + 1, b), minimums, x, t + 1, b),
        _minimum(scaled_sum(a2, d2, scales, x, t + 2, b), minimums, x, t + 2, b),
        _minimum(scaled_sum(a3, d3, scales, x, t + 3, b), minimums, x, t + 3, b),
    )


def _q8_1(fmt, tile, acc, x, t, b):
    _, codes, _, _, width = x
    c = codes + t * width + 32 * b
    even, odd = centred(x, t, b, 128), splat_i32(int32(0))
    for j in range(0, 32, 8):
        even = dot_u8(even, load_u8(tile + 16 * j), broadcast_4(c + j))
        odd = dot_u8(odd, load_u8(tile + 16 * j + 64), broadcast_4(c + j + 4))
    return scaled_sum(acc, add_i32(even, odd), load_f16(tile + 512), x, t, b)


def _q8_4(fmt, tile, acc, x, t, b):
    _, codes, _, _, width = x
    c0 = codes + t * width + 32 * b
    c1, c2, c3 = c0 + width, c0 + 2 * width, c0 + 3 * width
    s0, s1 = centred(x, t, b, 128), centred(x, t + 1, b, 128)
    s2, s3 = centred(x, t + 2, b, 128), centred(x, t + 3, b, 128)
    for j in range(0, 32, 4):
        w = load_u8(tile + 16 * j)
        s0 = dot_u8(s0, w, broadcast_4(c0 + j))
        s1 = dot_u8(s1, w, broadcast_4(c1 + j))
        s2 = dot_u8(s2, w, broadcast_4(c2 + j))
        s3 = dot_u8(s3, w, broadcast_4(c3 + j))
    scales = load_f16(tile + 512)
    a0, a1, a2, a3 = acc
    return (
        scaled_sum(a0, s0, scales, x, t, b),
        scaled_sum(a1, s1, scales, x, t + 1, b),
        scaled_sum(a2, s2, scales, x, t + 2, b),
        scaled_sum(a3, s3, scales, x, t + 3, b),
    )
