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
    a, b, c, e = zero(), zero(), zero(), zero()
    for d in range(0, dim, 4):
        at = k + step * d
        a = fma(load_row_16(fmt, at), splat(load_float(q + 4 * d)), a)
        b = fma(load_row_16(fmt, at + step), splat(load_float(q + 4 * d + 4)), b)
        c = fma(load_row_16(fmt, at + 2 * step), splat(load_float(q + 4 * d + 8)), c)
        e = fma(load_row_16(fmt, at + 3 * step), splat(load_float(q + 4 * d + 12)), e)
    return add(add(a, b), add(c, e))


@jit.inline
def _scores_4(fmt, q, stride, k, dim):
    """_scores of four queries, `stride` bytes apart: each key is loaded and widened once."""
    step = 16 * element_bytes(fmt)
    q1, q2, q3 = q + stride, q + 2 * stride, q + 3 * stride
    z = zero()
    a0, a1, a2, a3 = z, z, z, z
    b0, b1, b2, b3 = z, z, z, z
    c0, c1, c2, c3 = z, z, z, z
    e0, e1, e2, e3 = z, z, z, z
    for d in range(0, dim, 4):
        at, x = k + step * d, 4 * d
        key = load_row_16(fmt, at)
        a0, a1 = fma(key, splat(load_float(q + x)), a0), fma(key, splat(load_float(q1 + x)), a1)
        a2, a3 = fma(key, splat(load_float(q2 + x)), a2), fma(key, splat(load_float(q3 + x)), a3)
        key, x = load_row_16(fmt, at + step), x + 4
        b0, b1 = fma(key, splat(load_float(q + x)), b0), fma(key, splat(load_float(q1 + x)), b1)
        b2, b3 = fma(key, splat(load_float(q2 + x)), b2), fma(key, splat(load_float(q3 + x)), b3)
        key, x = load_row_16(fmt, at + 2 * step), x + 4
        c0, c1 = fma(key, splat(load_float(q + x)), c0), fma(key, splat(load_float(q1 + x)), c1)
        c2, c3 = fma(key, splat(load_float(q2 + x)), c2), fma(key, splat(load_float(q3 + x)), c3)
        key, x = load_row_16(fmt, at + 3 * step), x + 4
        e0, e1 = fma(key, splat(load_float(q + x)), e0), fma(key, splat(load_float(q1 + x)), e1)
        e2, e3 = fma(key, splat(load_float(q2 + x)), e2), fma(key, splat(load_float(q3 + x)), e3)
    return (
        add(add(a0, b0), add(c0, e0)),
        add(add(a1, b1), add(c1, e1)),
        add(add(a2, b2), add(c2, e2)),
        add(add(a3, b3), add(c3, e3)),
    )


@jit.inline
def _weigh(scores, largest, total, p):
    """One step of the softmax: writes 16 weights to p; the new largest, total and rescaling."""
    now = max(largest, max_lanes(scores))
    rescale = exp(splat(float32(largest - now)))
    weights = exp(sub(scores, splat(now)))
    store_f32(p, weights)
    return now, fma(total, rescale, weights), rescale


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
def _accumulate_4(fmt, out, stride, rescales, p, v, dim):
    """_accumulate of 16 positions into four results: each value is loaded and widened once."""
    size = element_bytes(fmt)
    r0, r1, r2, r3 = rescales
    for d in range(0, dim, 16):
        to = out + 4 * d
        y0, y1 = mul(load_f32(to), r0), mul(load_f32(to + stride), r1)
        y2, y3 = mul(load_f32(to + 2 * stride), r2), mul(load_f32(to + 3 * stride), r3)
        for j in range(16):
            value = load_row_16(fmt, v + size * (j * dim + d))
            w = p + 4 * j
            y0 = fma(value, splat(load_float(w)), y0)
            y1 = fma(value, splat(load_float(w + 64)), y1)
            y2 = fma(value, splat(load_float(w + 128)), y2)
            y3 = fma(value, splat(load_float(w + 192)), y3)
        store_f32(to, y0)
        store_f32(to + stride, y1)
        store_f32(to + 2 * stride, y2)
        store_f32(to + 3 * stride, y3)


@jit.inline
def _finish(fmt, q, k, v, out, scale, start, visible, largest, total, p, dim):
    """The blocks from `start` on for one query, the last one perhaps in part; then normalise."""
    size = element_bytes(fmt)
    for first in range(start, visible, 16):
        count = min(visible - first, 16)
        scores = mul(_scores(fmt, q, k + size * first * dim, dim), scale)
        scores = keep_first(scores, count, splat(LOWEST))
        largest, total, rescale = _weigh(scores, largest, total, p)
        _accumulate(fmt, out, rescale, p, v + size * first * dim, dim, count)
    inverse = splat(float32(float32(1.0) / sum_lanes(total)))
    for d in range(0, dim, 16):
        store_f32(out + 4 * d, mul(load_f32(out + 4 * d), inverse))


@jit.inline
def _attend(fmt, args, rows, thread, threads):
    """Softmax attention, 16 positions at a time with a running maximum (Milakov and Gimelshein,
    2018). Blocks begin at multiples of 16, whoever asks, so a token's result is always the same.

    Rows that follow each other in one sequence go four at a time over the blocks that all of them
    see whole; threads take turns, because later rows see more.
    """
    queries, q_stride, heads, scale_bits, layer, positions, table, out, stride = unpack(args, 9)
    kv_heads, dim, scratch = unpack(args + 72, 3)
    scale = splat(float_from_bits(scale_bits))
    size = element_bytes(fmt)
    p = scratch + 256 * thread
    group = heads // kv_heads
    fours = (rows + 3) // 4
    for task in range(thread, fours * heads, threads):
        t = task // heads * 4
        head = task - task // heads * heads
        count = min(4, rows - t)
        q = queries + 4 * (t * q_stride + head * dim)
        to = out + 4 * (t * stride + head * dim)
        for row in range(count):
            for d in range(0, dim, 16):
                store_f32(to + 4 * (row * stride + d), zero())
        shared = _shared_positions(positions + 8 * t, table + 24 * t, count)
        at = (layer * kv_heads + head // group) * load_int(table + 24 * t + 16)
        k, v = load_int(table + 24 * t) + at, load_int(table + 24 * t + 8) + at
        m0, m1, m2, m3 = LOWEST, LOWEST, LOWEST, LOWEST
        t0, t1, t2, t3 = zero(), zero(), zero(), zero()
        for start in range(0, shared, 16):
            s0, s1, s2, s3 = _scores_4(fmt, q, 4 * q_stride, k + size * start * dim, dim)
            m0, t0, r0 = _weigh(mul(s0, scale), m0, t0, p)
            m1, t1, r1 = _weigh(mul(s1, scale), m1, t1, p + 64)
            m2, t2, r2 = _weigh(mul(s2, scale), m2, t2, p + 128)
            m3, t3, r3 = _weigh(mul(s3, scale), m3, t3, p + 192)
            at_v = v + size * start * dim
            _accumulate_4(fmt, to, 4 * stride, (r0, r1, r2, r3), p, at_v, dim)
        for row in range(count):
            largest, total = m0, t0
            if row == 1:
                largest, total = m1, t1
            elif row == 2:
                largest, total = m2, t2
            elif row == 3:
                largest, total = m3, t3
            entry = table + 24 * (t + row)
            at = (layer * kv_heads + head // group) * load_int(entry + 16)
            visible = load_int(positions + 8 * (t + row)) + 1
            _finish(
                fmt,
                q + 4 * row * q_stride,
                load_int(entry) + at,
                load_int(entry + 8) + at,
                to + 4 * row * stride,
                scale,
                shared,
                visible,
                largest,
                total,
                p,
                dim,
            )


@jit.inline
def _shared_positions(positions, table, count):
    """Positions in whole blocks that four rows of one sequence all see; 0 if they are not that."""
    if count < 4:
        return 0
    visible = load_int(positions) + 1
    for row in range(1, 4):
        if load_int(table + 24 * row) != load_int(table):
            return 0
        visible = min(visible, load_int(positions + 8 * row) + 1)
    return visible // 16 * 16


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
