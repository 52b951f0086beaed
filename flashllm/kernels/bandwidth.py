"""How fast this machine reads memory: the yardstick of every kernel that streams weights."""

from __future__ import annotations

import time

import numpy as np

from flashllm.kernels import jit
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.memory import huge_buffer
from flashllm.kernels.simd import add_i32, load_i32x16, splat_i32, store_i32, sum_lanes_i32
from flashllm.kernels.team import Team

_DEFAULT_BYTES = 1 << 30
"""Larger than the last-level caches of ordinary machines; a server's may be of this order."""


@jit.op
def _read(args, rows, thread, threads):
    """Sum every int32 of a buffer, in four chains; `rows` is not used."""
    buffer, lines, sums = unpack(args, 3)
    first, last = share(lines, thread, threads)
    zero = splat_i32(np.int32(0))
    a, b, c, d = zero, zero, zero, zero
    for line in range(first, last):
        at = buffer + 256 * line
        a = add_i32(a, load_i32x16(at))
        b = add_i32(b, load_i32x16(at + 64))
        c = add_i32(c, load_i32x16(at + 128))
        d = add_i32(d, load_i32x16(at + 192))
    store_i32(sums + 64 * thread, sum_lanes_i32(add_i32(add_i32(a, b), add_i32(c, d))))


def measure(threads: int, size: int = _DEFAULT_BYTES, repeats: int = 5) -> float:
    """Best sequential read rate over `repeats` passes of a `size`-byte buffer, in GB/s (10^9)."""
    buffer = huge_buffer(size)
    buffer[:] = 1
    sums = np.zeros(16 * threads, np.int32)
    args = np.array([buffer.ctypes.data, size // 256, sums.ctypes.data], np.int64)
    instruction = np.array([_read.address, 1, args.ctypes.data], np.int64)
    best = float("inf")
    with Team(threads) as team:
        for _ in range(repeats):
            start = time.perf_counter()
            team.run(instruction.ctypes.data, 1, 1)
            best = min(best, time.perf_counter() - start)
    return size // 256 * 256 / best / 1e9
