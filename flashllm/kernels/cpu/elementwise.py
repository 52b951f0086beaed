"""Kernels on one row at a time: embedding rows, RMSNorm, rotary positions."""

from __future__ import annotations

import math

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8, tile_bytes, weight_at
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    add,
    float_from_bits,
    fma,
    load_f32,
    load_float,
    load_int,
    mul,
    splat,
    store_f32,
    store_float,
    sum_lanes,
    zero,
)


@jit.inline
def _embed(fmt, args, rows, thread, threads):
    """out[t] = row tokens[t] of a tiled matrix."""
    tokens, table, per_unit, blocks, cols, out, stride = unpack(args, 7)
    first, last = share(rows, thread, threads)
    for t in range(first, last):
        token = load_int(tokens + 8 * t)
        panel, row = token >> 4, token & 15
        unit = panel // per_unit
        tile = load_int(table + 8 * unit) + (panel - unit * per_unit) * blocks * tile_bytes(fmt)
        for c in range(cols):
            value = weight_at(fmt, tile + (c >> 5) * tile_bytes(fmt), row, c & 31)
            store_float(out + 4 * (t * stride + c), value)


@jit.op
def embed_f32(args, rows, thread, threads):
    _embed(F32, args, rows, thread, threads)


@jit.op
def embed_f16(args, rows, thread, threads):
    _embed(F16, args, rows, thread, threads)


@jit.op
def embed_bf16(args, rows, thread, threads):
    _embed(BF16, args, rows, thread, threads)


@jit.op
def embed_q8(args, rows, thread, threads):
    _embed(Q8, args, rows, thread, threads)


@jit.op
def embed_q4(args, rows, thread, threads):
    _embed(Q4, args, rows, thread, threads)


@jit.op
def embed_q4m(args, rows, thread, threads):
    _embed(Q4M, args, rows, thread, threads)


@jit.op
def rms_norm(args, rows, thread, threads):
    """Rows are padded with zeros to whole vectors, which add nothing to the sum."""
    x, x_stride, weight, width, whole, eps_bits, out, stride = unpack(args, 8)
    eps = float_from_bits(eps_bits)
    first, last = share(rows, thread, threads)
    for t in range(first, last):
        row, to = x + 4 * t * x_stride, out + 4 * t * stride
        even, odd = zero(), zero()
        for i in range(0, 4 * whole, 128):
            v = load_f32(row + i)
            even = fma(v, v, even)
            v = load_f32(row + i + 64)
            odd = fma(v, v, odd)
        mean = sum_lanes(add(even, odd)) / float32(width)
        inverse = splat(float32(float32(1.0) / math.sqrt(float32(mean + eps))))
        for i in range(0, 4 * whole, 64):
            store_f32(to + i, mul(mul(load_f32(row + i), inverse), load_f32(weight + i)))


@jit.op
def rope(args, rows, thread, threads):
    """Rotate pairs of every head: (2i, 2i+1) if step is 2, (i, i + half) if step is 1."""
    x, stride, heads, half, positions, cos, sin, step, apart = unpack(args, 9)
    first, last = share(rows * heads, thread, threads)
    for task in range(first, last):
        t = task // heads
        head = x + 4 * (t * stride + (task - t * heads) * 2 * half)
        angles = 4 * load_int(positions + 8 * t) * half
        for i in range(half):
            c, s = load_float(cos + angles + 4 * i), load_float(sin + angles + 4 * i)
            a = head + 4 * i * step
            b = a + 4 * apart
            u, v = load_float(a), load_float(b)
            store_float(a, float32(u * c - v * s))
            store_float(b, float32(u * s + v * c))
