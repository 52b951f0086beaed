"""Kernels on one element or pair at a time: rows of a table, rotary positions, soft caps."""

from __future__ import annotations

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.activation import tanh
from flashllm.kernels.cpu.tiles import BF16, F16, F32, Q4, Q4M, Q8, tile_bytes, weight_at
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    div,
    float_from_bits,
    load_f32,
    load_float,
    load_int,
    mul,
    splat,
    store_f32,
    store_float,
)


@jit.inline
def _embed(fmt, args, rows, thread, threads):
    """out[t] (+)= scale * row indices[t] of a tiled matrix."""
    indices, table, per_unit, blocks, cols, out, stride, scale_bits, accumulate = unpack(args, 9)
    scale = float_from_bits(scale_bits)
    first, last = share(rows, thread, threads)
    for t in range(first, last):
        index = load_int(indices + 8 * t)
        panel, row = index >> 4, index & 15
        unit = panel // per_unit
        tile = load_int(table + 8 * unit) + (panel - unit * per_unit) * blocks * tile_bytes(fmt)
        for c in range(cols):
            to = out + 4 * (t * stride + c)
            value = float32(weight_at(fmt, tile + (c >> 5) * tile_bytes(fmt), row, c & 31) * scale)
            store_float(to, float32(load_float(to) + value) if accumulate else value)


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
def copy(args, rows, thread, threads):
    x, x_stride, vectors, out, stride = unpack(args, 5)
    first, last = share(rows, thread, threads)
    for t in range(first, last):
        for i in range(0, 64 * vectors, 64):
            store_f32(out + 4 * t * stride + i, load_f32(x + 4 * t * x_stride + i))


@jit.op
def soft_cap(args, rows, thread, threads):
    """x = cap * tanh(x / cap): threads share the vectors of all rows, as rows may be few."""
    x, stride, vectors, cap_bits = unpack(args, 4)
    cap = splat(float_from_bits(cap_bits))
    first, last = share(rows * vectors, thread, threads)
    for task in range(first, last):
        t = task // vectors
        at = x + 4 * t * stride + 64 * (task - t * vectors)
        store_f32(at, mul(cap, tanh(div(load_f32(at), cap))))


@jit.op
def rope(args, rows, thread, threads):
    """Rotate the first pairs of every head: (2i, 2i+1) if step is 2, (i, i + half) if it is 1."""
    x, stride, heads, dim, half, positions, cos, sin, step, apart = unpack(args, 10)
    first, last = share(rows * heads, thread, threads)
    for task in range(first, last):
        t = task // heads
        head = x + 4 * (t * stride + (task - t * heads) * dim)
        angles = 4 * load_int(positions + 8 * t) * half
        for i in range(half):
            c, s = load_float(cos + angles + 4 * i), load_float(sin + angles + 4 * i)
            a = head + 4 * i * step
            b = a + 4 * apart
            u, v = load_float(a), load_float(b)
            store_float(a, float32(u * c - v * s))
            store_float(b, float32(u * s + v * c))
