"""Weights to tiles of 4- and 8-bit codes: the scale of every group of 32 is searched for.

A lane is a row of a tile of 16 rows x 32 columns, so that a group's sums run down the columns in
order, no sum crosses lanes, and codes come out as tiles store them. Products and sums are rounded
apart, never fused: flash/quantize.py, in numpy, is the specification; every CPU gives its codes.
"""

from __future__ import annotations

from numba import float32, float64

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import round_nearest
from flashllm.kernels.simd import (
    absolute,
    add,
    add_i32,
    div,
    load_bf16,
    load_bfloat,
    load_f16,
    load_f32,
    load_float,
    load_half,
    load_i32x16,
    maximum,
    minimum,
    mul,
    round_to_half,
    shift_left,
    splat,
    store_f16,
    store_f32,
    store_float,
    store_i32x16,
    sub,
    sum_lanes,
    to_int,
    transpose,
    where_below,
    zero,
)

F32, F16, BF16 = 0, 1, 2
SOURCES = {"f32": F32, "f16": F16, "bf16": BF16}
Q8, Q4, Q4M = 0, 1, 2
TARGETS = {"q8": Q8, "q4": Q4, "q4m": Q4M}
"""What the kernel calls the dtypes it reads and writes."""

SCRATCH = 2 * 32 * 16
"""Floats the kernel works in: a block as rows, then as columns."""

_TINY = float32(1e-30)
"""Scales and weights below this count as zero: their inverses could overflow."""


@jit.inline
def _load_block(x, source, stride, rows, cols, as_rows, block):
    """`rows` x `cols` weights as columns: block [32][16], zero beyond the edges."""
    if rows < 16 or cols < 32:
        for i in range(32):
            store_f32(as_rows + 64 * i, zero())
    for r in range(rows):
        row, to = x + r * stride, as_rows + 128 * r
        if cols < 32:
            for c in range(cols):
                if source == F16:
                    store_float(to + 4 * c, load_half(row + 2 * c))
                elif source == BF16:
                    store_float(to + 4 * c, load_bfloat(row + 2 * c))
                else:
                    store_float(to + 4 * c, load_float(row + 4 * c))
        elif source == F16:
            store_f32(to, load_f16(row))
            store_f32(to + 64, load_f16(row + 32))
        elif source == BF16:
            store_f32(to, load_bf16(row))
            store_f32(to + 64, load_bf16(row + 32))
        else:
            store_f32(to, load_f32(row))
            store_f32(to + 64, load_f32(row + 64))
    transpose(as_rows, 128, block)
    transpose(as_rows + 64, 128, block + 1024)


@jit.inline
def _inverse(scale):
    """1 / scale where it is above _TINY in magnitude, else 0."""
    return where_below(splat(_TINY), absolute(scale), div(splat(float32(1.0)), scale), zero())


@jit.inline
def _level(x, low, high):
    """The nearest whole number from `low` to `high`."""
    return round_nearest(minimum(maximum(x, splat(float32(low))), splat(float32(high))))


@jit.inline
def _largest(block):
    """The weight of the largest magnitude, the first of equals; and its magnitude."""
    extreme, magnitude = zero(), zero()
    for c in range(32):
        x = load_f32(block + 64 * c)
        size = absolute(x)
        extreme = where_below(magnitude, size, x, extreme)
        magnitude = maximum(magnitude, size)
    return extreme, magnitude


@jit.inline
def _fit_q4(block, inverse):
    """Of the levels nearest to x * inverse: sum of x * level, and of level^2."""
    products, squares = zero(), zero()
    for c in range(32):
        x = load_f32(block + 64 * c)
        level = _level(mul(x, inverse), -8, 7)
        products = add(products, mul(x, level))
        squares = add(squares, mul(level, level))
    return products, squares


@jit.inline
def _ratio(numerator, denominator):
    """Their quotient where the denominator is positive, else 0."""
    return where_below(zero(), denominator, div(numerator, denominator), zero())


@jit.inline
def _search_q4(block, steps):
    """The scale: the start whose levels explain most of the squares, then fitted once more."""
    extreme, magnitude = _largest(block)
    best, most = zero(), zero()
    for i in range(len(steps)):
        start = div(splat(steps[i]), extreme)
        inverse = where_below(splat(_TINY), magnitude, start, zero())
        products, squares = _fit_q4(block, inverse)
        scale = _ratio(products, squares)
        explained = mul(scale, products)
        best = where_below(most, explained, scale, best)
        most = maximum(most, explained)
    products, squares = _fit_q4(block, _inverse(best))
    return round_to_half(_ratio(products, squares))


@jit.inline
def _fit_q4m(block, low, scale, shift):
    """Scale, shift and the squares explained, for the levels nearest to (x - low - shift) / scale.

    Where all levels are the same, scale and shift stay and nothing is explained.
    """
    inverse = _inverse(scale)
    levels, squares, total, products = zero(), zero(), zero(), zero()
    for c in range(32):
        x = sub(load_f32(block + 64 * c), low)
        level = _level(mul(sub(x, shift), inverse), 0, 15)
        levels = add(levels, level)
        squares = add(squares, mul(level, level))
        total = add(total, x)
        products = add(products, mul(x, level))
    count = splat(float32(32.0))
    spread = sub(mul(count, squares), mul(levels, levels))
    along = sub(mul(count, products), mul(levels, total))
    slope = _ratio(along, spread)
    scale = where_below(zero(), spread, slope, scale)
    fitted = div(sub(total, mul(slope, levels)), count)
    return scale, where_below(zero(), spread, fitted, shift), mul(slope, along)


@jit.inline
def _search_q4m(block, steps, shifts):
    """Scale and minimum: the start that explains most of the squares, then fitted once more."""
    low = load_f32(block)
    high = low
    for c in range(1, 32):
        x = load_f32(block + 64 * c)
        low, high = minimum(low, x), maximum(high, x)
    span = sub(high, low)
    best, best_shift, most = zero(), zero(), zero()
    for i in range(len(steps)):
        scale = div(span, splat(steps[i]))
        scale, shift, explained = _fit_q4m(block, low, scale, mul(splat(shifts[i]), scale))
        best = where_below(most, explained, scale, best)
        best_shift = where_below(most, explained, shift, best_shift)
        most = maximum(most, explained)
    scale, shift, _ = _fit_q4m(block, low, best, best_shift)
    return round_to_half(scale), round_to_half(add(low, shift))


@jit.inline
def _write_codes(block, dtype, scale, low, cols, columns):
    """Codes of the nearest levels over the block's columns, as integers in floats' place.

    Returns the sums of squared errors and of squares.
    """
    inverse = _inverse(scale)
    start, end, offset = float32(0.0), float32(15.0), float32(0.0)
    if dtype == Q8:
        start, end, offset = float32(-127.0), float32(127.0), float32(128.0)
    elif dtype == Q4:
        start, end, offset = float32(-8.0), float32(7.0), float32(8.0)
    error, power = zero(), zero()
    for c in range(cols):
        x = load_f32(block + 64 * c)
        above = sub(x, low)
        level = _level(mul(above, inverse), start, end)
        miss = sub(mul(level, scale), above)
        error = add(error, mul(miss, miss))
        power = add(power, mul(x, x))
        store_i32x16(columns + 64 * c, to_int(add(level, splat(offset))))
    for c in range(cols, 32):
        store_i32x16(columns + 64 * c, to_int(splat(offset)))
    return error, power


@jit.inline
def _four(columns, c, bits):
    """The codes of columns c .. c + 3, each in its byte, `bits` above its lowest."""
    word = shift_left(load_i32x16(columns + 64 * c), bits)
    for i in range(1, 4):
        codes = load_i32x16(columns + 64 * (c + i))
        word = add_i32(word, shift_left(codes, 8 * i + bits))
    return word


@jit.inline
def _write_tile(columns, dtype, scale, low, tile):
    """Codes, scales and minimums as docs/format.md has them; returns the tile's end."""
    if dtype == Q8:
        for j in range(8):
            store_i32x16(tile + 64 * j, _four(columns, 4 * j, 0))
        store_f16(tile + 512, scale)
        return tile + 544
    for j in range(4):
        word = add_i32(_four(columns, 4 * j, 0), _four(columns, 16 + 4 * j, 4))
        store_i32x16(tile + 64 * j, word)
    store_f16(tile + 256, scale)
    if dtype == Q4:
        return tile + 288
    store_f16(tile + 288, low)
    return tile + 320


@jit.entry("(intp, intp, intp, intp, intp, float32[:, ::1], intp, intp)")
def quantize_tiles(x, source, rows, cols, dtype, starts, scratch, tiles):
    """Weights [rows, cols] at address `x` as tiles, padded, at address `tiles`.

    source, dtype: of SOURCES and TARGETS. starts: float32 [2, n], flash/quantize.py's. scratch:
    address of SCRATCH floats. Returns the sums of squared errors and of squares.
    """
    block = scratch + 2048
    stride = cols * (4 if source == F32 else 2)
    error, power = 0.0, 0.0
    for row in range(0, rows, 16):
        for column in range(0, cols, 32):
            at = x + row * stride + column * (4 if source == F32 else 2)
            wide = min(32, cols - column)
            _load_block(at, source, stride, min(16, rows - row), wide, scratch, block)
            scale, low = zero(), zero()
            if dtype == Q8:
                _, magnitude = _largest(block)
                scale = round_to_half(div(magnitude, splat(float32(127.0))))
            elif dtype == Q4:
                scale = _search_q4(block, starts[0])
            else:
                scale, low = _search_q4m(block, starts[0], starts[1])
            missed, squares = _write_codes(block, dtype, scale, low, wide, scratch)
            error += float64(sum_lanes(missed))
            power += float64(sum_lanes(squares))
            tiles = _write_tile(scratch, dtype, scale, low, tiles)
    return error, power
