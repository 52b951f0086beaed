"""Stored rows of codec `row`, one at a time, for every format: a dot product, and a sum into y."""

from __future__ import annotations

from numba import float32, int32
from numba.extending import overload

from flashllm.kernels import jit
from flashllm.kernels.cpu.tiles import OPTIONS, element_bytes, load_row_16
from flashllm.kernels.simd import (
    add,
    dot_u4,
    dot_u8,
    fma,
    keep_first,
    load_f16,
    load_f32,
    load_half,
    load_i32x16,
    load_nibbles,
    load_nibbles_as_float,
    load_u8,
    load_u8_as_float,
    mul,
    prefetch,
    splat,
    splat_i32,
    spread_pair,
    store_f32,
    sum_lanes,
    to_float,
    zero,
)


def row_dot(fmt, row, ahead, x, t, width):
    """The dot product of a stored row and token t; asks for the row at `ahead` on the way."""
    raise TypeError("for kernels only")


def add_column(fmt, column, ahead, h, y, first, last, width):
    """y[first:last] += h * a stored column; first and last are multiples of 64. Asks for the same
    part of the column at `ahead` on the way."""
    raise TypeError("for kernels only")


def add_columns(fmt, a, b, ahead_a, ahead_b, h_a, h_b, y, first, last, width):
    """As add_column of a, then of b: the same sums, in the same order."""
    raise TypeError("for kernels only")


@overload(row_dot, jit_options=OPTIONS)
def _row_dot(fmt, row, ahead, x, t, width):
    return {"q8": _q8_dot, "q4": _q4_dot, "q4m": _q4m_dot}.get(fmt.format.name, _float_dot)


@overload(add_column, jit_options=OPTIONS)
def _add_column(fmt, column, ahead, h, y, first, last, width):
    return {"q8": _q8_add, "q4": _q4_add, "q4m": _q4m_add}.get(fmt.format.name, _float_add)


@overload(add_columns, jit_options=OPTIONS)
def _add_columns(fmt, a, b, ahead_a, ahead_b, h_a, h_b, y, first, last, width):
    quantized = fmt.format.name in ("q8", "q4", "q4m")
    return _add_one_by_one if quantized else _float_add_two


def _add_one_by_one(fmt, a, b, ahead_a, ahead_b, h_a, h_b, y, first, last, width):
    add_column(fmt, a, ahead_a, h_a, y, first, last, width)
    add_column(fmt, b, ahead_b, h_b, y, first, last, width)


def _float_dot(fmt, row, ahead, x, t, width):
    values, _, _, _, stride = x
    v = values + 4 * t * stride
    size = element_bytes(fmt)
    s0, s1, s2, s3 = zero(), zero(), zero(), zero()
    for c in range(0, width, 64):
        w, u = row + size * c, v + 4 * c
        for line in range(0, 64 * size, 64):
            prefetch(ahead + size * c + line)
        s0 = fma(load_row_16(fmt, w), load_f32(u), s0)
        s1 = fma(load_row_16(fmt, w + 16 * size), load_f32(u + 64), s1)
        s2 = fma(load_row_16(fmt, w + 32 * size), load_f32(u + 128), s2)
        s3 = fma(load_row_16(fmt, w + 48 * size), load_f32(u + 192), s3)
    return sum_lanes(add(add(s0, s1), add(s2, s3)))


def _float_add(fmt, column, ahead, h, y, first, last, width):
    size = element_bytes(fmt)
    hv = splat(h)
    for c in range(first, last, 64):
        for line in range(0, 64 * size, 64):
            prefetch(ahead + size * c + line)
        for i in range(c, c + 64, 16):
            to = y + 4 * i
            store_f32(to, fma(load_row_16(fmt, column + size * i), hv, load_f32(to)))


def _float_add_two(fmt, a, b, ahead_a, ahead_b, h_a, h_b, y, first, last, width):
    """Two streams keep more reads under way than one, and y is loaded and stored half as often:
    58 % of the read rate instead of 47. Two rows at a time in _float_dot gained nothing.
    """
    size = element_bytes(fmt)
    ha, hb = splat(h_a), splat(h_b)
    for c in range(first, last, 64):
        for line in range(0, 64 * size, 64):
            prefetch(ahead_a + size * c + line)
            prefetch(ahead_b + size * c + line)
        for i in range(c, c + 64, 16):
            to = y + 4 * i
            sums = fma(load_row_16(fmt, a + size * i), ha, load_f32(to))
            store_f32(to, fma(load_row_16(fmt, b + size * i), hb, sums))


@jit.inline
def _ask(codes, size, scales):
    """Ask for `size` bytes of codes, and for the cache line of their scales."""
    for line in range(0, size, 64):
        prefetch(codes + line)
    prefetch(scales)


@jit.inline
def _group_scales(scales, x_scales, group, groups):
    """Weight scale * activation scale of 16 groups; past the end 0, so what lies there is moot."""
    product = mul(load_f16(scales + 2 * group), load_f32(x_scales + 4 * group))
    return keep_first(product, groups - group, zero())


def _q8_dot(fmt, row, ahead, x, t, width):
    """16 groups of 32 at a time: their scales are one vector; a code's offset of 128 is taken off
    through the sum of the activation's codes."""
    _, codes, x_scales, sums, stride = x
    c8, groups = codes + t * stride, width >> 5
    xs, xn = x_scales + 4 * t * (stride >> 5), sums + 4 * t * (stride >> 5)
    acc, offset = zero(), zero()
    for group in range(0, groups, 16):
        _ask(ahead + 32 * group, 512, ahead + width + 2 * group)
        scale = _group_scales(row + width, xs, group, groups)
        offset = fma(to_float(load_i32x16(xn + 4 * group)), scale, offset)
        for pair in range(min(8, (groups - group) >> 1)):
            at = 32 * group + 64 * pair
            dots = dot_u8(splat_i32(int32(0)), load_u8(row + at), load_u8(c8 + at))
            acc = fma(to_float(dots), spread_pair(scale, pair), acc)
    return sum_lanes(fma(offset, splat(float32(-128.0)), acc))


def _q4_dot(fmt, row, ahead, x, t, width):
    _, codes, x_scales, sums, stride = x
    c8, groups = codes + t * stride, width >> 5
    xs, xn = x_scales + 4 * t * (stride >> 5), sums + 4 * t * (stride >> 5)
    acc, offset = zero(), zero()
    for group in range(0, groups, 16):
        _ask(ahead + 16 * group, 256, ahead + (width >> 1) + 2 * group)
        scale = _group_scales(row + (width >> 1), xs, group, groups)
        offset = fma(to_float(load_i32x16(xn + 4 * group)), scale, offset)
        for pair in range(min(8, (groups - group) >> 1)):
            at = 32 * group + 64 * pair
            dots = dot_u4(splat_i32(int32(0)), load_nibbles(row + (at >> 1)), load_u8(c8 + at))
            acc = fma(to_float(dots), spread_pair(scale, pair), acc)
    return sum_lanes(fma(offset, splat(float32(-8.0)), acc))


def _q4m_dot(fmt, row, ahead, x, t, width):
    _, codes, x_scales, sums, stride = x
    c8, groups = codes + t * stride, width >> 5
    xs, xn = x_scales + 4 * t * (stride >> 5), sums + 4 * t * (stride >> 5)
    scales = row + (width >> 1)
    acc, offset = zero(), zero()
    for group in range(0, groups, 16):
        _ask(ahead + 16 * group, 256, ahead + (width >> 1) + 2 * group)
        prefetch(ahead + (width >> 1) + 2 * groups + 2 * group)
        scale = _group_scales(scales, xs, group, groups)
        minimum = _group_scales(scales + 2 * groups, xs, group, groups)
        offset = fma(to_float(load_i32x16(xn + 4 * group)), minimum, offset)
        for pair in range(min(8, (groups - group) >> 1)):
            at = 32 * group + 64 * pair
            dots = dot_u4(splat_i32(int32(0)), load_nibbles(row + (at >> 1)), load_u8(c8 + at))
            acc = fma(to_float(dots), spread_pair(scale, pair), acc)
    return sum_lanes(add(offset, acc))


@jit.inline
def _add_16(y, codes, scale, offset):
    """y += codes * scale + offset."""
    store_f32(y, add(load_f32(y), fma(codes, scale, offset)))


def _q8_add(fmt, column, ahead, h, y, first, last, width):
    for c in range(first, last, 32):
        _ask(ahead + c, 32, ahead + width + (c >> 4))
        scale = splat(float32(h * load_half(column + width + (c >> 4))))
        offset = mul(scale, splat(float32(-128.0)))
        _add_16(y + 4 * c, load_u8_as_float(column + c), scale, offset)
        _add_16(y + 4 * c + 64, load_u8_as_float(column + c + 16), scale, offset)


@jit.inline
def _add_64(column, c, y, low, low_offset, high, high_offset):
    """64 columns of nibbles: 32 low ones, then 32 high ones, each a group of its own."""
    at, to = column + (c >> 1), y + 4 * c
    _add_16(to, load_nibbles_as_float(at, 0), low, low_offset)
    _add_16(to + 64, load_nibbles_as_float(at + 16, 0), low, low_offset)
    _add_16(to + 128, load_nibbles_as_float(at, 4), high, high_offset)
    _add_16(to + 192, load_nibbles_as_float(at + 16, 4), high, high_offset)


def _q4_add(fmt, column, ahead, h, y, first, last, width):
    centre = splat(float32(-8.0))
    for c in range(first, last, 64):
        scales = column + (width >> 1) + (c >> 4)
        _ask(ahead + (c >> 1), 32, ahead + (width >> 1) + (c >> 4))
        low, high = splat(float32(h * load_half(scales))), splat(float32(h * load_half(scales + 2)))
        _add_64(column, c, y, low, mul(low, centre), high, mul(high, centre))


def _q4m_add(fmt, column, ahead, h, y, first, last, width):
    for c in range(first, last, 64):
        scales = column + (width >> 1) + (c >> 4)
        minimums = scales + (width >> 4)
        _ask(ahead + (c >> 1), 32, ahead + (width >> 1) + (c >> 4))
        prefetch(ahead + (width >> 1) + (width >> 4) + (c >> 4))
        low, high = splat(float32(h * load_half(scales))), splat(float32(h * load_half(scales + 2)))
        low_offset = splat(float32(h * load_half(minimums)))
        high_offset = splat(float32(h * load_half(minimums + 2)))
        _add_64(column, c, y, low, low_offset, high, high_offset)
