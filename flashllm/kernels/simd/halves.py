"""float16 in LLVM IR: by instructions where the CPU has them, by bit arithmetic elsewhere."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from flashllm.kernels import jit
from flashllm.kernels.simd.vectors import (
    F16,
    F32,
    I16,
    I32,
    constant,
    f32x16,
    i32x16,
)


def _converts_halves() -> bool:
    """Whether the CPU converts halves. Without it LLVM calls a symbol that kills the process."""
    return jit.architecture() == "arm" or "f16c" in jit.cpu_features()


def _like(value: Any, number: Any, element: ir.Type) -> ir.Constant:
    """A constant of `element`, as many lanes as value has (a scalar has none)."""
    if isinstance(value.type, ir.VectorType):
        return constant(ir.VectorType(element, value.type.count), number)
    return ir.Constant(element, number)


def extend_half(b: ir.IRBuilder, half: Any) -> Any:
    """Finite halves (as i16) to floats.

    Without conversion instructions: shift the bits into a float's place and multiply by 2^112,
    which mends the exponent of normal and subnormal numbers alike, exactly.
    """
    vector = isinstance(half.type, ir.VectorType)
    floats, ints, halves = (
        (f32x16.ir, i32x16.ir, ir.VectorType(F16, 16)) if vector else (F32, I32, F16)
    )
    if _converts_halves():
        return b.fpext(b.bitcast(half, halves), floats)
    bits = b.zext(half, ints)
    magnitude = b.shl(b.and_(bits, _like(bits, 0x7FFF, I32)), _like(bits, 13, I32))
    value = b.fmul(b.bitcast(magnitude, floats), _like(bits, 2.0**112, F32))
    sign = b.shl(b.and_(bits, _like(bits, 0x8000, I32)), _like(bits, 16, I32))
    return b.bitcast(b.or_(b.bitcast(value, ints), sign), floats)


def truncate_to_half(b: ir.IRBuilder, value: Any) -> Any:
    """Floats to halves (as i16): nearest even, saturated at the largest finite half.

    Without conversion instructions: an addition rounds small numbers at a half's subnormal step,
    the others round by their own bits.
    """
    vector = isinstance(value.type, ir.VectorType)
    floats, ints, shorts, halves = (
        (f32x16.ir, i32x16.ir, ir.VectorType(I16, 16), ir.VectorType(F16, 16))
        if vector
        else (F32, I32, I16, F16)
    )
    for sign, limit in ((">", 65504.0), ("<", -65504.0)):
        bound = _like(value, limit, F32)
        value = b.select(b.fcmp_ordered(sign, value, bound), bound, value)
    if _converts_halves():
        return b.bitcast(b.fptrunc(value, halves), shorts)

    def number(n: int) -> ir.Constant:
        return _like(value, n, I32)

    bits = b.bitcast(value, ints)
    sign_bit = b.and_(b.lshr(bits, number(16)), number(0x8000))
    magnitude = b.and_(bits, number(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, number(13)), number(1))
    rebased = b.add(magnitude, number(0xFFF - (112 << 23)))
    normal = b.lshr(b.add(rebased, odd), number(13))
    rounded = b.fadd(b.bitcast(magnitude, floats), _like(value, 0.5, F32))
    subnormal = b.sub(b.bitcast(rounded, ints), number(0x3F000000))
    is_small = b.icmp_unsigned("<", magnitude, number(113 << 23))
    return b.trunc(b.or_(b.select(is_small, subnormal, normal), sign_bit), shorts)
