"""The feed-forward over `tile` units, in two halves with a barrier between them.

Threads split the neurons, then rows of the result, never a sum: a result is one chain over all
neurons in order, though these are spread over units. It begins with what `out` holds, so that it is
the same if the units are given in several runs.
"""

from __future__ import annotations

from numba.extending import overload

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import activate, quantize_block, rectify
from flashllm.kernels.cpu.bitmaps import pair_of_runs
from flashllm.kernels.cpu.panels import (
    NEAR,
    pair_alone,
    panel_1,
    panel_4,
    panel_address,
    panel_bytes,
    prefetch_tile,
    put,
    tiles_of,
)
from flashllm.kernels.cpu.tiles import (
    BF16,
    F16,
    F32,
    OPTIONS,
    Q4,
    Q4M,
    Q8,
    dot_1,
    dot_4,
    tile_bytes,
)
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import load_f32, load_int, mul, store_f32


@jit.inline
def _first(fmt, panel, blocks, x, bias, h, stride, rows):
    """h[t] = what the activation is taken of: gate, or up of a network without gates."""
    start = load_f32(bias)
    t = 0
    while t + 4 <= rows:
        y0, y1, y2, y3 = panel_4(fmt, panel, blocks, x, t, (start, start, start, start))
        to = h + 4 * t * stride
        store_f32(to, y0)
        store_f32(to + 4 * stride, y1)
        store_f32(to + 8 * stride, y2)
        store_f32(to + 12 * stride, y3)
        t += 4
    while t < rows:
        store_f32(h + 4 * t * stride, panel_1(fmt, panel, blocks, x, t, start))
        t += 1


@jit.inline
def _times_up(fmt, panel, blocks, x, bias, h, stride, rows, up_relu):
    """h[t] = h[t] * up, or * relu(up)."""
    start = load_f32(bias)
    t = 0
    while t + 4 <= rows:
        u0, u1, u2, u3 = panel_4(fmt, panel, blocks, x, t, (start, start, start, start))
        to = h + 4 * t * stride
        store_f32(to, mul(load_f32(to), rectify(u0, up_relu)))
        to += 4 * stride
        store_f32(to, mul(load_f32(to), rectify(u1, up_relu)))
        to += 4 * stride
        store_f32(to, mul(load_f32(to), rectify(u2, up_relu)))
        to += 4 * stride
        store_f32(to, mul(load_f32(to), rectify(u3, up_relu)))
        t += 4
    while t < rows:
        to = h + 4 * t * stride
        u = panel_1(fmt, panel, blocks, x, t, start)
        store_f32(to, mul(load_f32(to), rectify(u, up_relu)))
        t += 1


@jit.inline
def _activate_block(h, stride, rows, function, threshold):
    """h[t] = act(h[t]) of 32 neurons."""
    for t in range(rows):
        to = h + 4 * t * stride
        store_f32(to, activate(load_f32(to), function, threshold))
        store_f32(to + 64, activate(load_f32(to + 64), function, threshold))


@jit.inline
def ffn_hidden(fmt, args, rows, thread, threads):
    """h[t] = act(gate x[t]) * (up x[t]), and h quantised: a block of 32 neurons is one group.

    Biases as in dense.py: sums begin with them, a step of 0 bytes means 16 zeros.
    """
    x = unpack(args, 5)
    h, h_codes, h_scales, h_sums, stride = unpack(args + 40, 5)
    table, units, per_unit, blocks = unpack(args + 80, 4)
    function, threshold, up_relu, quantized, gated = unpack(args + 112, 5)
    bias, step, up_bias, up_step, scratch, apart = unpack(args + 152, 6)
    tiles = scratch + apart * thread
    size = panel_bytes(fmt, blocks)
    first, last = share(units * per_unit, thread, threads)
    for block in range(first, last):
        panels = panel_address(table, block, per_unit, (4 if gated else 2) * size)
        up = panels + 2 * size
        to = h + 128 * block
        b, up_b = bias + 2 * step * block, up_bias + 2 * up_step * block
        if rows == 1:
            start, start_2 = load_f32(b), load_f32(b + step)
            y, z = pair_alone(fmt, panels, panels + size, blocks, x, start, start_2)
            y, z = activate(y, function, threshold), activate(z, function, threshold)
            if gated:
                start, start_2 = load_f32(up_b), load_f32(up_b + up_step)
                u, v = pair_alone(fmt, up, up + size, blocks, x, start, start_2)
                y, z = mul(y, rectify(u, up_relu)), mul(z, rectify(v, up_relu))
            store_f32(to, y)
            store_f32(to + 64, z)
        else:
            panel = tiles_of(fmt, panels, blocks, tiles)
            _first(fmt, panel, blocks, x, b, to, stride, rows)
            panel = tiles_of(fmt, panels + size, blocks, tiles)
            _first(fmt, panel, blocks, x, b + step, to + 64, stride, rows)
            _activate_block(to, stride, rows, function, threshold)
            if gated:
                panel = tiles_of(fmt, up, blocks, tiles)
                _times_up(fmt, panel, blocks, x, up_b, to, stride, rows, up_relu)
                panel = tiles_of(fmt, up + size, blocks, tiles)
                b_2 = up_b + up_step
                _times_up(fmt, panel, blocks, x, b_2, to + 64, stride, rows, up_relu)
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
def ffn_down(fmt, args, rows, thread, threads):
    """out[t] (+)= bias + down h[t], unit after unit.

    Each thread hops through its rows of every unit, so the order within a unit keeps those
    together: per_unit tiles of a panel, then the next panel.
    """
    h = unpack(args, 5)
    table, units, per_unit, skip, panels, out, stride = unpack(args + 40, 7)
    accumulate, bias, step, scratch, apart = unpack(args + 96, 5)
    size = panel_bytes(fmt, per_unit)
    first, last = share(panels, thread, threads)
    for t in range(rows):
        for p in range(first, last):
            put(out + 4 * (t * stride + 16 * p), load_f32(bias + step * p), accumulate)
    for unit in range(units):
        down = load_int(table + 8 * unit) + skip
        block = unit * per_unit
        if rows == 1:
            after = load_int(table + 8 * min(unit + 1, units - 1)) + skip
            _down_alone(fmt, down, after, first, last, block, per_unit, h, out)
        else:
            for p in range(first, last):
                tile = tiles_of(fmt, down + p * size, per_unit, scratch + apart * thread)
                _down_panel(fmt, tile, block, per_unit, h, out + 64 * p, stride, rows)


def _down_alone(fmt, down, after, first, last, block, count, h, y):
    """y += one unit's panels first .. last-1 times the only token, in two streams. after: the unit
    that comes next.
    """
    raise TypeError("for kernels only")


@overload(_down_alone, jit_options=OPTIONS)
def _choose_down_alone(fmt, down, after, first, last, block, count, h, y):
    return _bitmaps_down_alone if fmt.format.bitmap else _tiles_down_alone


def _bitmaps_down_alone(fmt, down, after, first, last, block, count, h, y):
    size = panel_bytes(fmt, count)
    half = (last - first) // 2
    for i in range((last - first + 1) // 2):
        # An odd panel out is its own partner: both compute the same.
        p = first + i if i < half else last - 1
        q = p + half if i < half else p
        run_p, run_q = down + p * size, down + q * size
        acc_p, acc_q = load_f32(y + 64 * p), load_f32(y + 64 * q)
        acc_p, acc_q = pair_of_runs(fmt, run_p, run_q, count, h, block, acc_p, acc_q)
        store_f32(y + 64 * p, acc_p)
        store_f32(y + 64 * q, acc_q)


def _tiles_down_alone(fmt, down, after, first, last, block, count, h, y):
    """It asks for the same panels of the unit that comes after: each thread hops through its part
    of every unit, so what follows in memory is another thread's.

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
            prefetch_tile(fmt, after + at_p, down + at_p + NEAR)
            prefetch_tile(fmt, after + at_q, down + at_q + NEAR)
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
def ffn_hidden_f32(args, rows, thread, threads):
    ffn_hidden(F32, args, rows, thread, threads)


@jit.op
def ffn_hidden_f16(args, rows, thread, threads):
    ffn_hidden(F16, args, rows, thread, threads)


@jit.op
def ffn_hidden_bf16(args, rows, thread, threads):
    ffn_hidden(BF16, args, rows, thread, threads)


@jit.op
def ffn_hidden_q8(args, rows, thread, threads):
    ffn_hidden(Q8, args, rows, thread, threads)


@jit.op
def ffn_hidden_q4(args, rows, thread, threads):
    ffn_hidden(Q4, args, rows, thread, threads)


@jit.op
def ffn_hidden_q4m(args, rows, thread, threads):
    ffn_hidden(Q4M, args, rows, thread, threads)


@jit.op
def ffn_down_f32(args, rows, thread, threads):
    ffn_down(F32, args, rows, thread, threads)


@jit.op
def ffn_down_f16(args, rows, thread, threads):
    ffn_down(F16, args, rows, thread, threads)


@jit.op
def ffn_down_bf16(args, rows, thread, threads):
    ffn_down(BF16, args, rows, thread, threads)


@jit.op
def ffn_down_q8(args, rows, thread, threads):
    ffn_down(Q8, args, rows, thread, threads)


@jit.op
def ffn_down_q4(args, rows, thread, threads):
    ffn_down(Q4, args, rows, thread, threads)


@jit.op
def ffn_down_q4m(args, rows, thread, threads):
    ffn_down(Q4M, args, rows, thread, threads)
