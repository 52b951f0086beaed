"""Attention over a cache of keys and values in f16, f32 or q8, for any rows of any sequences."""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import exp, tanh
from flashllm.kernels.cpu.tiles import F16, F32, Q8, element_bytes, load_row_16
from flashllm.kernels.cpu.work import unpack
from flashllm.kernels.simd import (
    add,
    div,
    drop_first,
    float_from_bits,
    fma,
    keep_first,
    lane_numbers,
    load_f32,
    load_float,
    load_int,
    max_lanes,
    mul,
    splat,
    store_f32,
    store_float,
    sub,
    sum_lanes,
    zero,
)

LOWEST = float32(-1e30)
STATE = 128
"""Bytes of a query's softmax so far: its largest score, and at byte 64 the sums of 16 lanes."""
SCRATCH = 256 + 4 * STATE
"""Bytes a thread needs: the weights of four queries' blocks, and four states."""


@jit.inline
def _block(fmt, start, dim):
    """Bytes from a head's first block to the one that begins at position `start`."""
    if element_bytes(fmt) == 1:
        return (start >> 4) * (16 * dim + 64)
    return element_bytes(fmt) * start * dim


@jit.inline
def _scaled(fmt, x, block, dim):
    """x, a lane for each position, times the scales of a block, if the format has scales."""
    if element_bytes(fmt) == 1:
        return mul(x, load_f32(block + 16 * dim))
    return x


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
    return _scaled(fmt, add(add(a, b), add(c, e)), k, dim)


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
        _scaled(fmt, add(add(a0, b0), add(c0, e0)), k, dim),
        _scaled(fmt, add(add(a1, b1), add(c1, e1)), k, dim),
        _scaled(fmt, add(add(a2, b2), add(c2, e2)), k, dim),
        _scaled(fmt, add(add(a3, b3), add(c3, e3)), k, dim),
    )


@jit.inline
def _weigh(fmt, scores, largest, total, p, v, dim):
    """One step of the softmax: the new largest, total and rescaling.

    Writes 16 weights to p, times the scales of the values v that they are for.
    """
    now = max(largest, max_lanes(scores))
    rescale = exp(splat(float32(largest - now)))
    weights = exp(sub(scores, splat(now)))
    store_f32(p, _scaled(fmt, weights, v, dim))
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


# A rule says what Scoring does beyond scaling: (window, cap, slopes, slope_step), a cap of 0 being
# none and slopes being bytes apart, 0 for a single slope of 0. Where there is nothing beyond, the
# rule is None, and Numba leaves its branches out of the kernel.


@jit.inline
def _adjust(scores, rule, head, back):
    """Scores with their cap and slope; lane j is `back - j` tokens before the query."""
    _, cap, slopes, slope_step = rule
    if cap > 0:
        scores = mul(splat(cap), tanh(div(scores, splat(cap))))
    slope = load_float(slopes + slope_step * head)
    return fma(sub(splat(float32(back)), lane_numbers()), splat(float32(-slope)), scores)


@jit.inline
def _walk(fmt, rule, step, t, head, begin, end, state):
    """The blocks from `begin` to `end` for one query, whose softmax so far is in `state`.

    Positions that it does not see, after it or before its window, weigh nothing.
    """
    queries, q_stride, heads, scale_bits, layer, positions, table, out, stride = step[:9]
    kv_heads, dim, scratch = step[9:]
    scale = splat(float_from_bits(scale_bits))
    entry = table + 24 * t
    at = (layer * kv_heads + head // (heads // kv_heads)) * load_int(entry + 16)
    k, v = load_int(entry) + at, load_int(entry + 8) + at
    q, to = queries + 4 * (t * q_stride + head * dim), out + 4 * (t * stride + head * dim)
    position = load_int(positions + 8 * t)
    largest, total = load_float(state), load_f32(state + 64)
    for start in range(begin, end, 16):
        count = min(position + 1 - start, 16)
        scores = mul(_scores(fmt, q, k + _block(fmt, start, dim), dim), scale)
        if rule is not None:
            scores = _adjust(scores, rule, head, position - start)
            scores = drop_first(scores, position + 1 - rule[0] - start, splat(LOWEST))
        scores = keep_first(scores, count, splat(LOWEST))
        block = v + _block(fmt, start, dim)
        largest, total, rescale = _weigh(fmt, scores, largest, total, scratch, block, dim)
        _accumulate(fmt, to, rescale, scratch, block, dim, count)
    store_float(state, largest)
    store_f32(state + 64, total)


@jit.inline
def _walk_shared(fmt, rule, step, t, head, begin, end, states):
    """The blocks from `begin` to `end`, which rows t .. t+3 all see whole."""
    queries, q_stride, heads, scale_bits, layer, positions, table, out, stride = step[:9]
    kv_heads, dim, p = step[9:]
    scale = splat(float_from_bits(scale_bits))
    entry = table + 24 * t
    at = (layer * kv_heads + head // (heads // kv_heads)) * load_int(entry + 16)
    k, v = load_int(entry) + at, load_int(entry + 8) + at
    q, to = queries + 4 * (t * q_stride + head * dim), out + 4 * (t * stride + head * dim)
    at = positions + 8 * t
    b0, b1, b2, b3 = load_int(at), load_int(at + 8), load_int(at + 16), load_int(at + 24)
    m0, m1 = load_float(states), load_float(states + STATE)
    m2, m3 = load_float(states + 2 * STATE), load_float(states + 3 * STATE)
    t0, t1 = load_f32(states + 64), load_f32(states + STATE + 64)
    t2, t3 = load_f32(states + 2 * STATE + 64), load_f32(states + 3 * STATE + 64)
    for start in range(begin, end, 16):
        s0, s1, s2, s3 = _scores_4(fmt, q, 4 * q_stride, k + _block(fmt, start, dim), dim)
        s0, s1, s2, s3 = mul(s0, scale), mul(s1, scale), mul(s2, scale), mul(s3, scale)
        if rule is not None:
            s0 = _adjust(s0, rule, head, b0 - start)
            s1 = _adjust(s1, rule, head, b1 - start)
            s2 = _adjust(s2, rule, head, b2 - start)
            s3 = _adjust(s3, rule, head, b3 - start)
        block = v + _block(fmt, start, dim)
        m0, t0, r0 = _weigh(fmt, s0, m0, t0, p, block, dim)
        m1, t1, r1 = _weigh(fmt, s1, m1, t1, p + 64, block, dim)
        m2, t2, r2 = _weigh(fmt, s2, m2, t2, p + 128, block, dim)
        m3, t3, r3 = _weigh(fmt, s3, m3, t3, p + 192, block, dim)
        _accumulate_4(fmt, to, 4 * stride, (r0, r1, r2, r3), p, block, dim)
    store_float(states, m0)
    store_float(states + STATE, m1)
    store_float(states + 2 * STATE, m2)
    store_float(states + 3 * STATE, m3)
    store_f32(states + 64, t0)
    store_f32(states + STATE + 64, t1)
    store_f32(states + 2 * STATE + 64, t2)
    store_f32(states + 3 * STATE + 64, t3)


@jit.inline
def _first_block(rule, position):
    """Where the first block begins that a query at `position` sees something of."""
    if rule is None:
        return 0
    return max(position + 1 - rule[0], 0) // 16 * 16


@jit.inline
def _shared_blocks(rule, positions, table, count):
    """(begin, end) of the blocks that four rows of one sequence all see whole; (0, 0) if none."""
    if count < 4:
        return 0, 0
    begin, end = 0, load_int(positions) + 1
    for row in range(4):
        if load_int(table + 24 * row) != load_int(table):
            return 0, 0
        position = load_int(positions + 8 * row)
        end = min(end, position + 1)
        if rule is not None:
            begin = max(begin, position + 1 - rule[0])
    begin, end = (begin + 15) // 16 * 16, end // 16 * 16
    if begin >= end:
        return 0, 0
    return begin, end


@jit.inline
def _attend(fmt, rule, args, rows, thread, threads):
    """Softmax attention, 16 positions at a time with a running maximum (Milakov and Gimelshein,
    2018). Blocks begin at multiples of 16, whoever asks, and follow each other in order, so a
    token's result is always the same.

    Rows that follow each other in one sequence go four at a time over the blocks that all of them
    see whole, each alone over those before (the edges of their windows) and after; threads take
    turns, because later rows see more.
    """
    _, _, heads, _, _, positions, table, out, stride = unpack(args, 9)
    kv_heads, dim, scratch = unpack(args + 72, 3)
    step = (*unpack(args, 9), kv_heads, dim, scratch + SCRATCH * thread)
    states = scratch + SCRATCH * thread + 256
    for task in range(thread, (rows + 3) // 4 * heads, threads):
        t = task // heads * 4
        head = task - task // heads * heads
        count = min(4, rows - t)
        for row in range(count):
            store_float(states + STATE * row, LOWEST)
            store_f32(states + STATE * row + 64, zero())
            for d in range(0, dim, 16):
                store_f32(out + 4 * ((t + row) * stride + head * dim + d), zero())
        begin, end = _shared_blocks(rule, positions + 8 * t, table + 24 * t, count)
        if rule is not None:
            for row in range(count):
                first = _first_block(rule, load_int(positions + 8 * (t + row)))
                _walk(fmt, rule, step, t + row, head, first, begin, states + STATE * row)
        _walk_shared(fmt, rule, step, t, head, begin, end, states)
        for row in range(count):
            position = load_int(positions + 8 * (t + row))
            first = end if end > 0 else _first_block(rule, position)
            state = states + STATE * row
            _walk(fmt, rule, step, t + row, head, first, position + 1, state)
            inverse = splat(float32(float32(1.0) / sum_lanes(load_f32(state + 64))))
            for d in range(0, dim, 16):
                to = out + 4 * ((t + row) * stride + head * dim + d)
                store_f32(to, mul(load_f32(to), inverse))


@jit.inline
def _rule(args):
    window, cap_bits, slopes, slope_step = unpack(args + 96, 4)
    return window, float_from_bits(cap_bits), slopes, slope_step


@jit.op
def attend_f16(args, rows, thread, threads):
    _attend(F16, None, args, rows, thread, threads)


@jit.op
def attend_f32(args, rows, thread, threads):
    _attend(F32, None, args, rows, thread, threads)


@jit.op
def attend_q8(args, rows, thread, threads):
    _attend(Q8, None, args, rows, thread, threads)


@jit.op
def attend_by_rule_q8(args, rows, thread, threads):
    _attend(Q8, _rule(args), args, rows, thread, threads)


@jit.op
def attend_by_rule_f16(args, rows, thread, threads):
    _attend(F16, _rule(args), args, rows, thread, threads)


@jit.op
def attend_by_rule_f32(args, rows, thread, threads):
    _attend(F32, _rule(args), args, rows, thread, threads)
