"""Dot products of bytes: VNNI where the CPU has it, exact sums of narrower products elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from flashllm.kernels import jit
from flashllm.kernels.simd.vectors import (
    I8,
    I16,
    call,
    constant,
    i32x16,
    load_at,
    operation,
    shuffle,
    u8x64,
)


@operation(u8x64, u8x64)
def low_nibbles(b, x):
    """The low 4 bits of each byte."""
    return b.and_(x, constant(u8x64.ir, 15))


@operation(u8x64, u8x64)
def high_nibbles(b, x):
    """The high 4 bits of each byte."""
    return b.lshr(x, constant(u8x64.ir, 4))


@operation(u8x64, types.intp)
def load_nibbles(b, address):
    """32 bytes as 64 codes: the low nibbles, then the high ones."""
    codes = load_at(b, address, ir.VectorType(I8, 32))
    low = b.and_(codes, constant(codes.type, 15))
    return shuffle(b, low, b.lshr(codes, constant(codes.type, 4)), list(range(64)))


@operation(i32x16, i32x16, u8x64, u8x64)
def dot_u8(b, acc, u, s):
    """acc[i] += the dot product of bytes 4i .. 4i+3 of u (0..255) and s (-128..127)."""
    return _dot(b, acc, u, s, small=False)


@operation(i32x16, i32x16, u8x64, u8x64)
def dot_u4(b, acc, u, s):
    """dot_u8 for u <= 15, where AVX2 needs half the work."""
    return _dot(b, acc, u, s, small=True)


def _dot(b: ir.IRBuilder, acc: Any, u: Any, s: Any, *, small: bool) -> Any:
    features = jit.cpu_features()
    if "avx512vnni" in features:
        return call(b, "llvm.x86.avx512.vpdpbusd.512", i32x16.ir, acc, u, s)
    if "avxvnni" in features:
        return _in_halves(b, acc, u, s, _dot_avxvnni)
    if "avx2" in features:
        return _in_halves(b, acc, u, s, _dot_avx2_small if small else _dot_avx2)
    return _dot_portable(b, acc, u, s)


def _in_halves(b: ir.IRBuilder, acc: Any, u: Any, s: Any, dot: Callable[..., Any]) -> Any:
    halves = []
    for half in range(2):
        lanes, data = range(8 * half, 8 * half + 8), range(32 * half, 32 * half + 32)
        parts = (shuffle(b, acc, acc, lanes), shuffle(b, u, u, data), shuffle(b, s, s, data))
        halves.append(dot(b, *parts))
    return shuffle(b, halves[0], halves[1], range(16))


def _dot_avxvnni(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    return call(b, "llvm.x86.avx512.vpdpbusd.256", acc.type, acc, u, s)


def _dot_avx2_small(b: ir.IRBuilder, acc: Any, u: Any, s: Any, weight: int = 1) -> Any:
    """vpmaddubsw adds pairs in int16 and saturates: exact only for u <= 127."""
    pairs = call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), u, s)
    weights = constant(pairs.type, weight)
    return b.add(acc, call(b, "llvm.x86.avx2.pmadd.wd", acc.type, pairs, weights))


def _dot_avx2(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    """u = (u & 127) + 128 * (u >> 7): both parts are small enough."""
    low = b.and_(u, constant(u.type, 127))
    acc = _dot_avx2_small(b, acc, low, s)
    return _dot_avx2_small(b, acc, b.lshr(u, constant(u.type, 7)), s, weight=128)


def _dot_portable(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    """Vector IR alone: every fourth product, widened, summed."""
    for k in range(4):
        lanes = range(k, 64, 4)
        codes = b.zext(shuffle(b, u, u, lanes), i32x16.ir)
        acc = b.add(acc, b.mul(codes, b.sext(shuffle(b, s, s, lanes), i32x16.ir)))
    return acc
