"""Keys and values into the cache, in f16, f32 or q8."""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.tiles import F16, F32, element_bytes
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    absolute,
    load_f32,
    load_float,
    load_int,
    max_lanes,
    maximum,
    store_byte,
    store_float,
    store_half,
    zero,
)
from flashllm.kernels.weights import Q8_SMALLEST

_SMALLEST = float32(Q8_SMALLEST)
_TO_NEAREST = float32(12582912)  # 1.5 * 2**23: adding it leaves a float no bits for a fraction


@jit.inline
def _store(fmt, address, value):
    if element_bytes(fmt) == 2:
        store_half(address, value)
    else:
        store_float(address, value)


@jit.inline
def _write_kv(fmt, args, rows, thread, threads):
    """Scatter keys to [position / 16][dim][16], values to [position][dim]."""
    keys, k_stride, values, v_stride, heads, dim, layer, positions, table = unpack(args, 9)
    size = element_bytes(fmt)
    first, last = share(rows * heads, thread, threads)
    for task in range(first, last):
        t = task // heads
        head = task - t * heads
        position = load_int(positions + 8 * t)
        at = (layer * heads + head) * load_int(table + 24 * t + 16)
        k = load_int(table + 24 * t) + at + size * ((position >> 4) * dim * 16 + (position & 15))
        v = load_int(table + 24 * t + 8) + at + size * position * dim
        key = keys + 4 * (t * k_stride + head * dim)
        value = values + 4 * (t * v_stride + head * dim)
        for d in range(dim):
            _store(fmt, k + 16 * size * d, load_float(key + 4 * d))
            _store(fmt, v + size * d, load_float(value + 4 * d))


@jit.inline
def _store_codes(source, dim, codes, stride, scale):
    """A vector as int8 codes `stride` bytes apart, and the scale that they are multiples of."""
    lanes = zero()
    for d in range(0, dim, 16):
        lanes = maximum(lanes, absolute(load_f32(source + 4 * d)))
    largest = max_lanes(lanes)
    if largest < _SMALLEST:
        largest = float32(0.0)
        inverse = float32(0.0)
    else:
        inverse = float32(float32(127.0) / largest)
    store_float(scale, float32(largest / float32(127.0)))
    for d in range(dim):
        scaled = float32(load_float(source + 4 * d) * inverse)
        nearest = float32(float32(scaled + _TO_NEAREST) - _TO_NEAREST)
        store_byte(codes + stride * d, int(nearest))


@jit.op
def write_kv_q8(args, rows, thread, threads):
    """Scatter keys and values to the blocks of q8_keys and q8_values."""
    keys, k_stride, values, v_stride, heads, dim, layer, positions, table = unpack(args, 9)
    first, last = share(rows * heads, thread, threads)
    for task in range(first, last):
        t = task // heads
        head = task - t * heads
        position = load_int(positions + 8 * t)
        at = (layer * heads + head) * load_int(table + 24 * t + 16)
        at += (position >> 4) * (16 * dim + 64)
        lane = position & 15
        k, v = load_int(table + 24 * t) + at, load_int(table + 24 * t + 8) + at
        scale = 16 * dim + 4 * lane
        _store_codes(keys + 4 * (t * k_stride + head * dim), dim, k + lane, 16, k + scale)
        _store_codes(values + 4 * (t * v_stride + head * dim), dim, v + lane * dim, 1, v + scale)


@jit.op
def write_kv_f16(args, rows, thread, threads):
    _write_kv(F16, args, rows, thread, threads)


@jit.op
def write_kv_f32(args, rows, thread, threads):
    _write_kv(F32, args, rows, thread, threads)
