"""Runs of tiles stored as bitmaps: expanded to tiles, or multiplied without.

A run begins with 8 bytes that say how far from there its values are, then has 64 bytes for each of
its tiles: a bit for each weight that is not zero, 64 to a word, a word for 4 columns of the tile.
Where the values are come first the scales of quantised tiles, as tiles have them, then the codes of
the weights that are not zero. docs/format.md draws it.

What is computed is bit for bit what tiles.py computes of the tiles: the same operations in the same
order, of the zeros as well.
"""

from __future__ import annotations

from numba import int32
from numba.extending import overload

from flashllm.kernels import jit
from flashllm.kernels.cpu.tiles import OPTIONS, centred, scaled_sum, tile_bytes
from flashllm.kernels.simd import (
    add,
    add_i32,
    broadcast_4,
    copy_32,
    dot_u4,
    dot_u8,
    expand_halves,
    expand_high,
    expand_low,
    expand_q8,
    fma,
    high_bf16,
    high_f16,
    join_nibbles,
    load_f16,
    load_float,
    load_int,
    low_bf16,
    low_f16,
    popcount,
    popcount_low,
    prefetch,
    prefetch_near,
    splat,
    splat_i32,
    store_halves,
    store_u8,
    zero,
)

INLINED = {**OPTIONS, "forceinline": True}
"""LLVM finds these too long to inline by itself; called, they lost a quarter of their speed."""

FAR, NEAR = 1024, 256
"""Bytes ahead of the value being read that are wanted in the second and first level of cache."""


def scale_bytes(fmt):
    """Bytes of the scales of a tile."""
    raise TypeError("for kernels only")


def low_floats(fmt, x):
    """The first 16 of 32 elements of two bytes, as floats."""
    raise TypeError("for kernels only")


def high_floats(fmt, x):
    """The last 16 of them."""
    raise TypeError("for kernels only")


def dot_bitmap(fmt, bitmap, scales, values, acc, x, t, b):
    """acc + a tile times token t, and where the values of the next tile are: dot_1 of tiles.py."""
    raise TypeError("for kernels only")


def expand_tile(fmt, bitmap, scales, values, out):
    """Write a tile as tiles.py has it; returns where the values of the next one are."""
    raise TypeError("for kernels only")


@jit.inline
def _ask(place):
    """Ask for what will be read after `place`."""
    prefetch(place + FAR)
    prefetch_near(place + NEAR)


@jit.inline
def expand_run(fmt, run, tiles, out):
    """Write the tiles of a run, one after another, to `out`."""
    scales = run + load_int(run)
    values = scales + tiles * scale_bytes(fmt)
    for i in range(tiles):
        bitmap, to = run + 8 + 64 * i, out + i * tile_bytes(fmt)
        values = expand_tile(fmt, bitmap, scales + i * scale_bytes(fmt), values, to)


@jit.inline
def pair_of_runs(fmt, a, b, tiles, x, first, y, z):
    """y + run a and z + run b, each times the first token, whose blocks from `first` on they meet.

    Two runs at once, for the values of a tile begin where those of the one before end: what waits
    for that in one run is done in the other meanwhile.
    """
    scales_a, scales_b = a + load_int(a), b + load_int(b)
    values_a = scales_a + tiles * scale_bytes(fmt)
    values_b = scales_b + tiles * scale_bytes(fmt)
    for i in range(tiles):
        s = i * scale_bytes(fmt)
        _ask(a + 8 + 64 * i)
        _ask(b + 8 + 64 * i)
        if s:
            _ask(scales_a + s)
            _ask(scales_b + s)
        y, values_a = dot_bitmap(fmt, a + 8 + 64 * i, scales_a + s, values_a, y, x, 0, first + i)
        z, values_b = dot_bitmap(fmt, b + 8 + 64 * i, scales_b + s, values_b, z, x, 0, first + i)
    return y, z


@overload(scale_bytes, jit_options=OPTIONS)
def _scale_bytes(fmt):
    size = 32 if fmt.format.name in ("q8", "q4") else 0
    return lambda fmt: size


@overload(low_floats, jit_options=OPTIONS)
def _low_floats(fmt, x):
    if fmt.format.name == "f16":
        return lambda fmt, x: low_f16(x)
    return lambda fmt, x: low_bf16(x)


@overload(high_floats, jit_options=OPTIONS)
def _high_floats(fmt, x):
    if fmt.format.name == "f16":
        return lambda fmt, x: high_f16(x)
    return lambda fmt, x: high_bf16(x)


@overload(dot_bitmap, jit_options=INLINED)
def _dot_bitmap(fmt, bitmap, scales, values, acc, x, t, b):
    return {"q8": _q8_dot, "q4": _q4_dot}.get(fmt.format.name, _halves_dot)


@overload(expand_tile, jit_options=INLINED)
def _expand_tile(fmt, bitmap, scales, values, out):
    return {"q8": _q8_expand, "q4": _q4_expand}.get(fmt.format.name, _halves_expand)


def _halves_dot(fmt, bitmap, scales, values, acc, x, t, b):
    floats, _, _, _, width = x
    v = floats + 4 * (t * width + 32 * b)
    s0, s1, s2, s3 = zero(), zero(), zero(), zero()
    for j in range(8):
        _ask(values)
        word = load_int(bitmap + 8 * j)
        low = expand_halves(values, word)
        values += 2 * popcount_low(word)
        high = expand_halves(values, word >> 32)
        values += 2 * popcount_low(word >> 32)
        s0 = fma(low_floats(fmt, low), splat(load_float(v + 16 * j)), s0)
        s1 = fma(high_floats(fmt, low), splat(load_float(v + 16 * j + 4)), s1)
        s2 = fma(low_floats(fmt, high), splat(load_float(v + 16 * j + 8)), s2)
        s3 = fma(high_floats(fmt, high), splat(load_float(v + 16 * j + 12)), s3)
    return add(acc, add(add(s0, s1), add(s2, s3))), values


def _halves_expand(fmt, bitmap, scales, values, out):
    for j in range(8):
        word = load_int(bitmap + 8 * j)
        store_halves(out + 128 * j, expand_halves(values, word))
        values += 2 * popcount_low(word)
        store_halves(out + 128 * j + 64, expand_halves(values, word >> 32))
        values += 2 * popcount_low(word >> 32)
    return values


def _q8_dot(fmt, bitmap, scales, values, acc, x, t, b):
    _, codes, _, _, width = x
    c = codes + t * width + 32 * b
    even, odd = centred(x, t, b, 128), splat_i32(int32(0))
    for j in range(0, 8, 2):
        _ask(values)
        word, next_word = load_int(bitmap + 8 * j), load_int(bitmap + 8 * j + 8)
        even = dot_u8(even, expand_q8(values, word), broadcast_4(c + 4 * j))
        values += popcount(word)
        odd = dot_u8(odd, expand_q8(values, next_word), broadcast_4(c + 4 * j + 4))
        values += popcount(next_word)
    return scaled_sum(acc, add_i32(even, odd), load_f16(scales), x, t, b), values


def _q8_expand(fmt, bitmap, scales, values, out):
    for j in range(8):
        word = load_int(bitmap + 8 * j)
        store_u8(out + 64 * j, expand_q8(values, word))
        values += popcount(word)
    copy_32(scales, out + 512)
    return values


@jit.inline
def _pair_bytes(word, other):
    """Bytes of the nibbles of two words: as many as the longer one has."""
    return max(popcount(word), popcount(other))


def _q4_dot(fmt, bitmap, scales, values, acc, x, t, b):
    """A byte has a nibble of a word, and one of the word 4 behind it: so there is one load for
    both, and no instruction has to spread nibbles to bytes. With the nibbles of each word by
    themselves a product took 1.1 times as long, before this was inlined.
    """
    _, codes, _, _, width = x
    c = codes + t * width + 32 * b
    low, high = centred(x, t, b, 8), splat_i32(int32(0))
    for j in range(4):
        if j % 2 == 0:
            _ask(values)
        word, other = load_int(bitmap + 8 * j), load_int(bitmap + 8 * j + 32)
        low = dot_u4(low, expand_low(values, word), broadcast_4(c + 4 * j))
        high = dot_u4(high, expand_high(values, other), broadcast_4(c + 4 * j + 16))
        values += _pair_bytes(word, other)
    return scaled_sum(acc, add_i32(low, high), load_f16(scales), x, t, b), values


def _q4_expand(fmt, bitmap, scales, values, out):
    for j in range(4):
        word, other = load_int(bitmap + 8 * j), load_int(bitmap + 8 * j + 32)
        store_u8(out + 64 * j, join_nibbles(expand_low(values, word), expand_high(values, other)))
        values += _pair_bytes(word, other)
    copy_32(scales, out + 256)
    return values
