"""Products of a tiled matrix.

Threads split rows of the result, never a sum: a result is one chain over the columns in order.
"""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.panels import (
    is_bitmap,
    pair_alone,
    panel_1,
    panel_4,
    panel_address,
    panel_bytes,
    put,
    tiles_of,
)
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import add, load_f32, zero


@jit.inline
def matmul(fmt, args, rows, thread, threads):
    """out[t, :] (+)= W x[t] + bias; the matrix is cut into units of `per_unit` panels.

    Sums begin with the bias, `step` bytes a panel: 0 where there is none, and it is 16 zeros.
    scratch: of each thread, for the tiles of a panel that is stored as bitmaps.
    """
    x = unpack(args, 5)
    table, panels, per_unit, blocks, out, stride, accumulate, bias, step = unpack(args + 40, 9)
    scratch, apart = unpack(args + 112, 2)
    size = panel_bytes(fmt, blocks)
    first, last = share(panels, thread, threads)
    if rows < (2 if is_bitmap(fmt) else 4):
        for p in range(first, last, 2):
            q = min(p + 1, last - 1)
            a = panel_address(table, p, per_unit, size)
            b = panel_address(table, q, per_unit, size)
            start_a, start_b = load_f32(bias + step * p), load_f32(bias + step * q)
            y, z = pair_alone(fmt, a, b, blocks, x, start_a, start_b)
            put(out + 64 * p, y, accumulate)
            if q > p:
                put(out + 64 * q, z, accumulate)
            for t in range(1, rows):
                to = out + 4 * t * stride
                put(to + 64 * p, panel_1(fmt, a, blocks, x, t, start_a), accumulate)
                if q > p:
                    put(to + 64 * q, panel_1(fmt, b, blocks, x, t, start_b), accumulate)
        return
    for p in range(first, last):
        panel = panel_address(table, p, per_unit, size)
        panel = tiles_of(fmt, panel, blocks, scratch + apart * thread)
        start = load_f32(bias + step * p)
        t = 0
        while t + 4 <= rows:
            y0, y1, y2, y3 = panel_4(fmt, panel, blocks, x, t, (start, start, start, start))
            to = out + 4 * (t * stride + 16 * p)
            put(to, y0, accumulate)
            put(to + 4 * stride, y1, accumulate)
            put(to + 8 * stride, y2, accumulate)
            put(to + 12 * stride, y3, accumulate)
            t += 4
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            put(to, panel_1(fmt, panel, blocks, x, t, start), accumulate)
            t += 1


@jit.inline
def matmul_fine(fmt, args, rows, thread, threads):
    """out[t, :] (+)= W x[2t] + W x[2t + 1] + bias: activations quantised twice."""
    x = unpack(args, 5)
    table, panels, per_unit, blocks, out, stride, accumulate, bias, step = unpack(args + 40, 9)
    scratch, apart = unpack(args + 112, 2)
    size = panel_bytes(fmt, blocks)
    none = zero()
    first, last = share(panels, thread, threads)
    if rows == 1 and not is_bitmap(fmt):
        for p in range(first, last, 2):
            q = min(p + 1, last - 1)
            a = panel_address(table, p, per_unit, size)
            b = panel_address(table, q, per_unit, size)
            start_a, start_b = load_f32(bias + step * p), load_f32(bias + step * q)
            y, z = pair_alone(fmt, a, b, blocks, x, start_a, start_b)
            put(out + 64 * p, add(y, panel_1(fmt, a, blocks, x, 1, none)), accumulate)
            if q > p:
                put(out + 64 * q, add(z, panel_1(fmt, b, blocks, x, 1, none)), accumulate)
        return
    for p in range(first, last):
        panel = panel_address(table, p, per_unit, size)
        panel = tiles_of(fmt, panel, blocks, scratch + apart * thread)
        start = load_f32(bias + step * p)
        t = 0
        while t + 2 <= rows:
            y0, y1, y2, y3 = panel_4(fmt, panel, blocks, x, 2 * t, (start, none, start, none))
            to = out + 4 * (t * stride + 16 * p)
            put(to, add(y0, y1), accumulate)
            put(to + 4 * stride, add(y2, y3), accumulate)
            t += 2
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            y = panel_1(fmt, panel, blocks, x, 2 * t, start)
            put(to, add(y, panel_1(fmt, panel, blocks, x, 2 * t + 1, none)), accumulate)
            t += 1


# One op per kernel and dtype: a program names the one it needs, and only those are compiled.


@jit.op
def matmul_f32(args, rows, thread, threads):
    matmul(F32, args, rows, thread, threads)


@jit.op
def matmul_f16(args, rows, thread, threads):
    matmul(F16, args, rows, thread, threads)


@jit.op
def matmul_bf16(args, rows, thread, threads):
    matmul(BF16, args, rows, thread, threads)


@jit.op
def matmul_q8(args, rows, thread, threads):
    matmul(Q8, args, rows, thread, threads)


@jit.op
def matmul_q4(args, rows, thread, threads):
    matmul(Q4, args, rows, thread, threads)


@jit.op
def matmul_q4m(args, rows, thread, threads):
    matmul(Q4M, args, rows, thread, threads)


@jit.op
def matmul_fine_q8(args, rows, thread, threads):
    matmul_fine(Q8, args, rows, thread, threads)


@jit.op
def matmul_fine_q4(args, rows, thread, threads):
    matmul_fine(Q4, args, rows, thread, threads)


@jit.op
def matmul_fine_q4m(args, rows, thread, threads):
    matmul_fine(Q4M, args, rows, thread, threads)
