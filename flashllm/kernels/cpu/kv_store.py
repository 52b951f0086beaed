"""Keys and values into the cache, in f16 or f32."""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.tiles import F16, F32, element_bytes
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import load_float, load_int, store_float, store_half


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


@jit.op
def write_kv_f16(args, rows, thread, threads):
    _write_kv(F16, args, rows, thread, threads)


@jit.op
def write_kv_f32(args, rows, thread, threads):
    _write_kv(F32, args, rows, thread, threads)
