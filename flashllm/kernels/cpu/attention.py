"""Attention over a cache of keys and values in f16 or f32, for any rows of any sequences."""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import exp
from flashllm.kernels.cpu.tiles import F16, F32, element_bytes, load_row_16
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    add,
    float_from_bits,
    fma,
    keep_first,
    load_f32,
    load_float,
    load_int,
    max_lanes,
    mul,
    splat,
    store_f32,
    store_float,
    store_half,
    sub,
    sum_lanes,
    zero,
)

LOWEST = float32(-1e30)


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
def _scores(fmt, q, k, dim):
    """Sixteen positions' q . k: a lane is a position, four chains over the dimensions."""
    step = 16 * element_bytes(fmt)
    s0, s1, s2, s3 = zero(), zero(), zero(), zero()
    for d in range(0, dim, 4):
        s0 = fma(load_row_16(fmt, k + step * d), splat(load_float(q + 4 * d)), s0)
        s1 = fma(load_row_16(fmt, k + step * (d + 1)), splat(load_float(q + 4 * d + 4)), s1)
        s2 = fma(load_row_16(fmt, k + step * (d + 2)), splat(load_float(q + 4 * d + 8)), s2)
        s3 = fma(load_row_16(fmt, k + step * (d + 3)), splat(load_float(q + 4 * d + 12)), s3)
    return add(add(s0, s1), add(s2, s3))


@jit.inline
def _accumulate(fmt, out, rescale, p, v, dim, count):
    """out = out * rescale + sum over `count` positions of p[j] * v[j]."""
    size = element_bytes(fmt)
    for d in range(0, dim, 16):
        acc = mul(load_f32(out + 4 * d), rescale)
        for j in range(count):
            value = load_row_16(fmt, v + size * (j * dim + d))
            acc = fma(value, splat(load_float(p + 4 * j)), acc)
        store_f32(out + 4 * d, acc)


@jit.inline
def _attend(fmt, args, rows, thread, threads):
    """Softmax attention, 16 positions at a time with a running maximum (Milakov and Gimelshein,
    2018). Blocks begin at multiples of 16, whoever asks, so a token's result is always the same.
    """
    queries, q_stride, heads, scale_bits, layer, positions, table, out, stride = unpack(args, 9)
    kv_heads, dim, scratch = unpack(args + 72, 3)
    scale = splat(float_from_bits(scale_bits))
    size = element_bytes(fmt)
    p = scratch + 64 * thread
    group = heads // kv_heads
    first, last = share(rows * heads, thread, threads)
    for task in range(first, last):
        t = task // heads
        head = task - t * heads
        at = (layer * kv_heads + head // group) * load_int(table + 24 * t + 16)
        k = load_int(table + 24 * t) + at
        v = load_int(table + 24 * t + 8) + at
        q = queries + 4 * (t * q_stride + head * dim)
        to = out + 4 * (t * stride + head * dim)
        for d in range(0, dim, 16):
            store_f32(to + 4 * d, zero())
        visible = load_int(positions + 8 * t) + 1
        largest, total = LOWEST, zero()
        for start in range(0, visible, 16):
            count = min(visible - start, 16)
            s = mul(_scores(fmt, q, k + size * start * dim, dim), scale)
            s = keep_first(s, count, splat(LOWEST))
            now = max(largest, max_lanes(s))
            rescale = exp(splat(float32(largest - now)))
            weights = exp(sub(s, splat(now)))
            total = fma(total, rescale, weights)
            store_f32(p, weights)
            _accumulate(fmt, to, rescale, p, v + size * start * dim, dim, count)
            largest = now
        inverse = splat(float32(float32(1.0) / sum_lanes(total)))
        for d in range(0, dim, 16):
            store_f32(to + 4 * d, mul(load_f32(to + 4 * d), inverse))


@jit.op
def write_kv_f16(args, rows, thread, threads):
    _write_kv(F16, args, rows, thread, threads)


@jit.op
def write_kv_f32(args, rows, thread, threads):
    _write_kv(F32, args, rows, thread, threads)


@jit.op
def attend_f16(args, rows, thread, threads):
    _attend(F16, args, rows, thread, threads)


@jit.op
def attend_f32(args, rows, thread, threads):
    _attend(F32, args, rows, thread, threads)
