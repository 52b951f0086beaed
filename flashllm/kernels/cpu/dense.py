"""Matrix products over tiles: the plain matmul, and the two halves of a gated feed-forward.

Threads split rows of the result, never a sum. Every result is one chain over the columns in order,
whether the columns lie in one matrix or are spread over units.
"""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import activate, quantize_block
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8, dot_1, dot_4, tile_bytes
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    add,
    load_f32,
    load_int,
    mul,
    prefetch,
    prefetch_near,
    store_f32,
    zero,
)

_FAR, _NEAR = 3072, 384
"""Bytes ahead of the tile being computed that are wanted in the second and first level of cache."""


@jit.inline
def _prefetch_tile(fmt, far, near):
    """Ask for a tile's worth of cache lines in the second level, and in the first."""
    for line in range(0, tile_bytes(fmt), 64):
        prefetch(far + line)
        prefetch_near(near + line)


@jit.inline
def _panel_1(fmt, panel, blocks, x, t):
    """16 rows times token t."""
    acc = zero()
    for b in range(blocks):
        acc = dot_1(fmt, panel + b * tile_bytes(fmt), acc, x, t, b)
    return acc


@jit.inline
def _panel_4(fmt, panel, blocks, x, t):
    """16 rows times tokens t .. t+3."""
    acc = (zero(), zero(), zero(), zero())
    for b in range(blocks):
        acc = dot_4(fmt, panel + b * tile_bytes(fmt), acc, x, t, b)
    return acc


@jit.inline
def _pair_alone(fmt, a, b, blocks, x):
    """Two panels times the first token of a step of few, whose weights come from memory.

    Two streams keep more reads under way than one. Measured at q4, 11008 x 4096, one thread, share
    of the read bandwidth: one stream 0.73, two 0.77; with prefetch 3 KB ahead into the second
    level and 384 bytes ahead into the first 0.93 (f16: 0.66, 0.80, 0.90).
    """
    y, z = zero(), zero()
    for i in range(blocks):
        p, q = a + i * tile_bytes(fmt), b + i * tile_bytes(fmt)
        _prefetch_tile(fmt, p + _FAR, p + _NEAR)
        _prefetch_tile(fmt, q + _FAR, q + _NEAR)
        y = dot_1(fmt, p, y, x, 0, i)
        z = dot_1(fmt, q, z, x, 0, i)
    return y, z


@jit.inline
def _put(out, value, accumulate):
    if accumulate:
        value = add(load_f32(out), value)
    store_f32(out, value)


@jit.inline
def _panel_address(table, panel, per_unit, size):
    unit = panel // per_unit
    return load_int(table + 8 * unit) + (panel - unit * per_unit) * size


@jit.inline
def _matmul(fmt, args, rows, thread, threads):
    """out[t, :] (+)= W x[t]; the matrix is cut into units of `per_unit` panels."""
    x = unpack(args, 5)
    table, panels, per_unit, blocks, out, stride, accumulate = unpack(args + 40, 7)
    size = blocks * tile_bytes(fmt)
    first, last = share(panels, thread, threads)
    if rows < 4:
        for p in range(first, last, 2):
            q = min(p + 1, last - 1)
            a = _panel_address(table, p, per_unit, size)
            b = _panel_address(table, q, per_unit, size)
            y, z = _pair_alone(fmt, a, b, blocks, x)
            _put(out + 64 * p, y, accumulate)
            if q > p:
                _put(out + 64 * q, z, accumulate)
            for t in range(1, rows):
                to = out + 4 * t * stride
                _put(to + 64 * p, _panel_1(fmt, a, blocks, x, t), accumulate)
                if q > p:
                    _put(to + 64 * q, _panel_1(fmt, b, blocks, x, t), accumulate)
        return
    for p in range(first, last):
        panel = _panel_address(table, p, per_unit, size)
        t = 0
        while t + 4 <= rows:
            y0, y1, y2, y3 = _panel_4(fmt, panel, blocks, x, t)
            to = out + 4 * (t * stride + 16 * p)
            _put(to, y0, accumulate)
            _put(to + 4 * stride, y1, accumulate)
            _put(to + 8 * stride, y2, accumulate)
            _put(to + 12 * stride, y3, accumulate)
            t += 4
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            _put(to, _panel_1(fmt, panel, blocks, x, t), accumulate)
            t += 1


@jit.inline
def _matmul_fine(fmt, args, rows, thread, threads):
    """out[t, :] (+)= W x[2t] + W x[2t + 1]: activations quantised twice."""
    x = unpack(args, 5)
    table, panels, per_unit, blocks, out, stride, accumulate = unpack(args + 40, 7)
    size = blocks * tile_bytes(fmt)
    first, last = share(panels, thread, threads)
    if rows == 1:
        for p in range(first, last, 2):
            q = min(p + 1, last - 1)
            a = _panel_address(table, p, per_unit, size)
            b = _panel_address(table, q, per_unit, size)
            y, z = _pair_alone(fmt, a, b, blocks, x)
            _put(out + 64 * p, add(y, _panel_1(fmt, a, blocks, x, 1)), accumulate)
            if q > p:
                _put(out + 64 * q, add(z, _panel_1(fmt, b, blocks, x, 1)), accumulate)
        return
    for p in range(first, last):
        panel = _panel_address(table, p, per_unit, size)
        t = 0
        while t + 2 <= rows:
            y0, y1, y2, y3 = _panel_4(fmt, panel, blocks, x, 2 * t)
            to = out + 4 * (t * stride + 16 * p)
            _put(to, add(y0, y1), accumulate)
            _put(to + 4 * stride, add(y2, y3), accumulate)
            t += 2
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            y = _panel_1(fmt, panel, blocks, x, 2 * t)
            _put(to, add(y, _panel_1(fmt, panel, blocks, x, 2 * t + 1)), accumulate)
            t += 1


@jit.inline
def _gate(fmt, panel, blocks, x, h, stride, rows):
    """h[t] = gate: kept in the result until the same panel of up has been computed."""
    t = 0
    while t + 4 <= rows:
        g0, g1, g2, g3 = _panel_4(fmt, panel, blocks, x, t)
        to = h + 4 * t * stride
        store_f32(to, g0)
        store_f32(to + 4 * stride, g1)
        store_f32(to + 8 * stride, g2)
        store_f32(to + 12 * stride, g3)
        t += 4
    while t < rows:
        store_f32(h + 4 * t * stride, _panel_1(fmt, panel, blocks, x, t))
        t += 1


@jit.inline
def _up(fmt, panel, blocks, x, h, stride, rows, function):
    """h[t] = act(h[t]) * up."""
    t = 0
    while t + 4 <= rows:
        u0, u1, u2, u3 = _panel_4(fmt, panel, blocks, x, t)
        to = h + 4 * t * stride
        store_f32(to, mul(activate(load_f32(to), function), u0))
        to += 4 * stride
        store_f32(to, mul(activate(load_f32(to), function), u1))
        to += 4 * stride
        store_f32(to, mul(activate(load_f32(to), function), u2))
        to += 4 * stride
        store_f32(to, mul(activate(load_f32(to), function), u3))
        t += 4
    while t < rows:
        to = h + 4 * t * stride
        u = _panel_1(fmt, panel, blocks, x, t)
        store_f32(to, mul(activate(load_f32(to), function), u))
        t += 1


@jit.inline
def _ffn_hidden(fmt, args, rows, thread, threads):
    """h[t] = act(gate x[t]) * (up x[t]), and h quantised: a block of 32 neurons is one group."""
    x = unpack(args, 5)
    h, h_codes, h_scales, h_sums, stride = unpack(args + 40, 5)
    table, units, per_unit, blocks, function, quantized = unpack(args + 80, 6)
    size = blocks * tile_bytes(fmt)
    first, last = share(units * per_unit, thread, threads)
    for block in range(first, last):
        gate = _panel_address(table, block, per_unit, 4 * size)
        to = h + 128 * block
        if rows == 1:
            g0, g1 = _pair_alone(fmt, gate, gate + size, blocks, x)
            u0, u1 = _pair_alone(fmt, gate + 2 * size, gate + 3 * size, blocks, x)
            store_f32(to, mul(activate(g0, function), u0))
            store_f32(to + 64, mul(activate(g1, function), u1))
        else:
            _gate(fmt, gate, blocks, x, to, stride, rows)
            _gate(fmt, gate + size, blocks, x, to + 64, stride, rows)
            _up(fmt, gate + 2 * size, blocks, x, to, stride, rows, function)
            _up(fmt, gate + 3 * size, blocks, x, to + 64, stride, rows, function)
        if quantized:
            for t in range(rows):
                group = t * (stride >> 5) + block
                quantize_block(
                    to + 4 * t * stride,
                    h_codes + 32 * group,
                    h_scales + 4 * group,
                    h_sums + 4 * group,
                )


@jit.inline
def _ffn_down(fmt, args, rows, thread, threads):
    """out[t] += down h[t], unit after unit; `partial` holds the sum while it grows.

    Each thread hops through its rows of every unit, so the order within a unit keeps those
    together: per_unit tiles of a panel, then the next panel.
    """
    h = unpack(args, 5)
    table, units, per_unit, skip, panels, partial, out, stride = unpack(args + 40, 8)
    first, last = share(panels, thread, threads)
    for t in range(rows):
        for p in range(first, last):
            store_f32(partial + 4 * (t * stride + 16 * p), zero())
    for unit in range(units):
        down = load_int(table + 8 * unit) + skip
        block = unit * per_unit
        if rows == 1:
            after = load_int(table + 8 * min(unit + 1, units - 1)) + skip
            _down_alone(fmt, down, after, first, last, block, per_unit, h, partial)
        else:
            for p in range(first, last):
                tile = down + p * per_unit * tile_bytes(fmt)
                _down_panel(fmt, tile, block, per_unit, h, partial + 64 * p, stride, rows)
    for t in range(rows):
        for p in range(first, last):
            at = 4 * (t * stride + 16 * p)
            store_f32(out + at, add(load_f32(out + at), load_f32(partial + at)))


@jit.inline
def _down_alone(fmt, down, after, first, last, block, count, h, y):
    """y += one unit's panels first .. last-1 times the only token, in two streams, asking for the
    same panels of the unit that comes after: each thread hops through its part of every unit, so
    what follows in memory is another thread's.

    Measured at q4, 11008 x 4096, one thread, share of the read bandwidth: one stream 0.60, with
    the next unit asked for 0.80, two streams 0.87.
    """
    half = (last - first) // 2
    for i in range((last - first + 1) // 2):
        # An odd panel out is its own partner: both compute the same.
        p = first + i if i < half else last - 1
        q = p + half if i < half else p
        acc_p, acc_q = load_f32(y + 64 * p), load_f32(y + 64 * q)
        for j in range(count):
            at_p = (p * count + j) * tile_bytes(fmt)
            at_q = (q * count + j) * tile_bytes(fmt)
            _prefetch_tile(fmt, after + at_p, down + at_p + _NEAR)
            _prefetch_tile(fmt, after + at_q, down + at_q + _NEAR)
            acc_p = dot_1(fmt, down + at_p, acc_p, h, 0, block + j)
            acc_q = dot_1(fmt, down + at_q, acc_q, h, 0, block + j)
        store_f32(y + 64 * p, acc_p)
        store_f32(y + 64 * q, acc_q)


@jit.inline
def _down_panel(fmt, tile, block, count, h, y, stride, rows):
    """y[t] += one unit's `count` tiles of a panel times h[t]."""
    t = 0
    while t + 4 <= rows:
        y0 = y + 4 * t * stride
        y1, y2, y3 = y0 + 4 * stride, y0 + 8 * stride, y0 + 12 * stride
        acc = (load_f32(y0), load_f32(y1), load_f32(y2), load_f32(y3))
        for j in range(count):
            acc = dot_4(fmt, tile + j * tile_bytes(fmt), acc, h, t, block + j)
        a0, a1, a2, a3 = acc
        store_f32(y0, a0)
        store_f32(y1, a1)
        store_f32(y2, a2)
        store_f32(y3, a3)
        t += 4
    while t < rows:
        to = y + 4 * t * stride
        acc1 = load_f32(to)
        for j in range(count):
            acc1 = dot_1(fmt, tile + j * tile_bytes(fmt), acc1, h, t, block + j)
        store_f32(to, acc1)
        t += 1


# One op per kernel and dtype: a program names the one it needs, and only those are compiled.


@jit.op
def matmul_f32(args, rows, thread, threads):
    _matmul(F32, args, rows, thread, threads)


@jit.op
def matmul_f16(args, rows, thread, threads):
    _matmul(F16, args, rows, thread, threads)


@jit.op
def matmul_bf16(args, rows, thread, threads):
    _matmul(BF16, args, rows, thread, threads)


@jit.op
def matmul_q8(args, rows, thread, threads):
    _matmul(Q8, args, rows, thread, threads)


@jit.op
def matmul_q4(args, rows, thread, threads):
    _matmul(Q4, args, rows, thread, threads)


@jit.op
def matmul_q4m(args, rows, thread, threads):
    _matmul(Q4M, args, rows, thread, threads)


@jit.op
def matmul_fine_q8(args, rows, thread, threads):
    _matmul_fine(Q8, args, rows, thread, threads)


@jit.op
def matmul_fine_q4(args, rows, thread, threads):
    _matmul_fine(Q4, args, rows, thread, threads)


@jit.op
def matmul_fine_q4m(args, rows, thread, threads):
    _matmul_fine(Q4M, args, rows, thread, threads)


@jit.op
def ffn_hidden_f32(args, rows, thread, threads):
    _ffn_hidden(F32, args, rows, thread, threads)


@jit.op
def ffn_hidden_f16(args, rows, thread, threads):
    _ffn_hidden(F16, args, rows, thread, threads)


@jit.op
def ffn_hidden_bf16(args, rows, thread, threads):
    _ffn_hidden(BF16, args, rows, thread, threads)


@jit.op
def ffn_hidden_q8(args, rows, thread, threads):
    _ffn_hidden(Q8, args, rows, thread, threads)


@jit.op
def ffn_hidden_q4(args, rows, thread, threads):
    _ffn_hidden(Q4, args, rows, thread, threads)


@jit.op
def ffn_hidden_q4m(args, rows, thread, threads):
    _ffn_hidden(Q4M, args, rows, thread, threads)


@jit.op
def ffn_down_f32(args, rows, thread, threads):
    _ffn_down(F32, args, rows, thread, threads)


@jit.op
def ffn_down_f16(args, rows, thread, threads):
    _ffn_down(F16, args, rows, thread, threads)


@jit.op
def ffn_down_bf16(args, rows, thread, threads):
    _ffn_down(BF16, args, rows, thread, threads)


@jit.op
def ffn_down_q8(args, rows, thread, threads):
    _ffn_down(Q8, args, rows, thread, threads)


@jit.op
def ffn_down_q4(args, rows, thread, threads):
    _ffn_down(Q4, args, rows, thread, threads)


@jit.op
def ffn_down_q4m(args, rows, thread, threads):
    _ffn_down(Q4M, args, rows, thread, threads)
