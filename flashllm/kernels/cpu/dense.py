"""Products of a tiled matrix.

Threads split rows of the result, never a sum: a result is one chain over the columns in order.
"""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.panels import pair_alone, panel_1, panel_4, panel_address, put
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8, tile_bytes
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import add


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
            a = panel_address(table, p, per_unit, size)
            b = panel_address(table, q, per_unit, size)
            y, z = pair_alone(fmt, a, b, blocks, x)
            put(out + 64 * p, y, accumulate)
            if q > p:
                put(out + 64 * q, z, accumulate)
            for t in range(1, rows):
                to = out + 4 * t * stride
                put(to + 64 * p, panel_1(fmt, a, blocks, x, t), accumulate)
                if q > p:
                    put(to + 64 * q, panel_1(fmt, b, blocks, x, t), accumulate)
        return
    for p in range(first, last):
        panel = panel_address(table, p, per_unit, size)
        t = 0
        while t + 4 <= rows:
            y0, y1, y2, y3 = panel_4(fmt, panel, blocks, x, t)
            to = out + 4 * (t * stride + 16 * p)
            put(to, y0, accumulate)
            put(to + 4 * stride, y1, accumulate)
            put(to + 8 * stride, y2, accumulate)
            put(to + 12 * stride, y3, accumulate)
            t += 4
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            put(to, panel_1(fmt, panel, blocks, x, t), accumulate)
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
            a = panel_address(table, p, per_unit, size)
            b = panel_address(table, q, per_unit, size)
            y, z = pair_alone(fmt, a, b, blocks, x)
            put(out + 64 * p, add(y, panel_1(fmt, a, blocks, x, 1)), accumulate)
            if q > p:
                put(out + 64 * q, add(z, panel_1(fmt, b, blocks, x, 1)), accumulate)
        return
    for p in range(first, last):
        panel = panel_address(table, p, per_unit, size)
        t = 0
        while t + 2 <= rows:
            y0, y1, y2, y3 = panel_4(fmt, panel, blocks, x, 2 * t)
            to = out + 4 * (t * stride + 16 * p)
            put(to, add(y0, y1), accumulate)
            put(to + 4 * stride, add(y2, y3), accumulate)
            t += 2
        while t < rows:
            to = out + 4 * (t * stride + 16 * p)
            y = panel_1(fmt, panel, blocks, x, 2 * t)
            put(to, add(y, panel_1(fmt, panel, blocks, x, 2 * t + 1)), accumulate)
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
