"""Arithmetic on vectors, lane by lane and across lanes in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from flashllm.kernels import jit
from flashllm.kernels.simd.vectors import (
    F32,
    I32,
    call,
    constant,
    f32x16,
    i32x16,
    operation,
    shuffle,
    splat_lanes,
)


@operation(f32x16)
def zero(b):
    """16 times 0.0."""
    return constant(f32x16.ir, 0.0)


@operation(f32x16, types.float32)
def splat(b, value):
    """A float in every lane."""
    return splat_lanes(b, value, 16)


@operation(i32x16, types.int32)
def splat_i32(b, value):
    """An int32 in every lane."""
    return splat_lanes(b, value, 16)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(b, x, y, z):
    """x * y + z: rounded once where the CPU has the instruction, else twice."""
    if jit.architecture() == "arm" or "fma" in jit.cpu_features():
        return call(b, "llvm.fma.v16f32", f32x16.ir, x, y, z)
    return b.fadd(b.fmul(x, y), z)


@operation(f32x16, f32x16, f32x16)
def add(b, x, y):
    """x + y."""
    return b.fadd(x, y)


@operation(f32x16, f32x16, f32x16)
def sub(b, x, y):
    """x - y."""
    return b.fsub(x, y)


@operation(f32x16, f32x16, f32x16)
def mul(b, x, y):
    """x * y."""
    return b.fmul(x, y)


@operation(f32x16, f32x16, f32x16)
def div(b, x, y):
    """x / y."""
    return b.fdiv(x, y)


@operation(f32x16, f32x16, f32x16)
def maximum(b, x, y):
    """The larger of each lane."""
    return call(b, "llvm.maxnum.v16f32", f32x16.ir, x, y)


@operation(f32x16, f32x16, f32x16)
def minimum(b, x, y):
    """The smaller of each lane."""
    return call(b, "llvm.minnum.v16f32", f32x16.ir, x, y)


@operation(f32x16, f32x16)
def absolute(b, x):
    """|x|."""
    return call(b, "llvm.fabs.v16f32", f32x16.ir, x)


@operation(i32x16, i32x16, i32x16)
def add_i32(b, x, y):
    """x + y."""
    return b.add(x, y)


@operation(i32x16, i32x16, types.int64)
def shift_left(b, x, bits):
    """x << bits, for 0 <= bits < 32."""
    return b.shl(x, splat_lanes(b, b.trunc(bits, I32), 16))


@operation(f32x16, i32x16)
def to_float(b, x):
    """int32 to float."""
    return b.sitofp(x, f32x16.ir)


@operation(i32x16, f32x16)
def to_int(b, x):
    """float to int32, towards zero; the caller rounds first."""
    return b.fptosi(x, i32x16.ir)


@operation(f32x16, i32x16)
def power_of_two(b, n):
    """2^n for -126 <= n <= 127, by writing the exponent."""
    biased = b.add(n, constant(i32x16.ir, 127))
    return b.bitcast(b.shl(biased, constant(i32x16.ir, 23)), f32x16.ir)


@operation(f32x16, f32x16, types.int64, f32x16)
def keep_first(b, x, count, other):
    """Lanes 0 .. count-1 of x, the rest of other."""
    lanes = constant(i32x16.ir, range(16))
    inside = b.icmp_signed("<", lanes, splat_lanes(b, b.trunc(count, I32), 16))
    return b.select(inside, x, other)


@operation(f32x16, f32x16, types.int64, f32x16)
def drop_first(b, x, count, other):
    """Lanes 0 .. count-1 of other, the rest of x."""
    lanes = constant(i32x16.ir, range(16))
    inside = b.icmp_signed("<", lanes, splat_lanes(b, b.trunc(count, I32), 16))
    return b.select(inside, other, x)


@operation(f32x16, f32x16, f32x16, f32x16, f32x16)
def where_below(b, x, bound, below, other):
    """Lanes of `below` where x < bound, elsewhere of `other`."""
    return b.select(b.fcmp_ordered("<", x, bound), below, other)


@operation(f32x16)
def lane_numbers(b):
    """0.0 to 15.0."""
    return constant(f32x16.ir, [float(lane) for lane in range(16)])


def _reduce(b: ir.IRBuilder, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Fold a vector in halves: a fixed order, so the same result wherever it is computed."""
    width = x.type.count
    while width > 1:
        width //= 2
        low = shuffle(b, x, x, list(range(width)))
        x = combine(low, shuffle(b, x, x, list(range(width, 2 * width))))
    return b.extract_element(x, I32(0))


@operation(types.float32, f32x16)
def first_lane(b, x):
    """Lane 0."""
    return b.extract_element(x, I32(0))


@operation(types.float32, f32x16)
def sum_lanes(b, x):
    """The sum of 16 lanes, in a fixed order."""
    return _reduce(b, x, b.fadd)


@operation(types.float32, f32x16)
def max_lanes(b, x):
    """The largest of 16 lanes."""
    return _reduce(b, x, lambda p, q: b.select(b.fcmp_ordered(">", p, q), p, q))


@operation(types.int32, i32x16)
def sum_lanes_i32(b, x):
    """The sum of 16 int32 lanes."""
    return _reduce(b, x, b.add)


@operation(f32x16, f32x16, types.int64)
def spread_pair(b, x, pair):
    """Lanes 0-7 = x[2 * pair], lanes 8-15 = x[2 * pair + 1]: scales of two groups of 32 columns."""
    index = b.trunc(pair, I32)
    first = b.extract_element(x, b.shl(index, I32(1)))
    second = b.extract_element(x, b.add(b.shl(index, I32(1)), I32(1)))
    return shuffle(b, splat_lanes(b, first, 16), splat_lanes(b, second, 16), [0] * 8 + [16] * 8)


@operation(types.float32, types.int64)
def float_from_bits(b, bits):
    """The float whose bits are the low 32 of an integer: how programs carry float arguments."""
    return b.bitcast(b.trunc(bits, I32), F32)
