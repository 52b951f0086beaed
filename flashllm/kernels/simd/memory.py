"""Loads, stores and prefetches, of vectors and of single numbers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from flashllm.kernels.simd.halves import extend_half, truncate_to_half
from flashllm.kernels.simd.vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    call,
    constant,
    f32x16,
    i32x16,
    load_at,
    operation,
    splat_lanes,
    store_at,
    u8x64,
    u16x32,
)


@operation(f32x16, types.intp)
def load_f32(b, address):
    """16 floats."""
    return load_at(b, address, f32x16.ir)


@operation(types.none, types.intp, f32x16)
def store_f32(b, address, value):
    """Write 16 floats."""
    store_at(b, value, address)


@operation(u8x64, types.intp)
def load_u8(b, address):
    """64 bytes."""
    return load_at(b, address, u8x64.ir)


@operation(types.none, types.intp, types.intp)
def copy_32(b, address, out):
    """Write 32 bytes that are elsewhere."""
    store_at(b, load_at(b, address, ir.VectorType(I8, 32)), out)


@operation(f32x16, types.intp)
def load_bf16(b, address):
    """16 bfloat16 as floats: the upper half of a float, so a shift."""
    wide = b.zext(load_at(b, address, ir.VectorType(I16, 16)), i32x16.ir)
    return b.bitcast(b.shl(wide, constant(i32x16.ir, 16)), f32x16.ir)


@operation(f32x16, types.intp)
def load_f16(b, address):
    """16 finite halves as floats."""
    return extend_half(b, load_at(b, address, ir.VectorType(I16, 16)))


@operation(u8x64, types.intp)
def broadcast_4(b, address):
    """4 bytes repeated 16 times: four int8 activations against four columns of 16 rows."""
    return b.bitcast(splat_lanes(b, load_at(b, address, I32), 16), u8x64.ir)


def _prefetch(b: ir.IRBuilder, address: Any, locality: int) -> None:
    pointer = b.inttoptr(address, I8.as_pointer())
    read, data = I32(0), I32(1)
    call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, read, I32(locality), data)


@operation(types.none, types.intp)
def prefetch(b, address):
    """Ask for the cache line at `address` in the second-level cache; never faults."""
    _prefetch(b, address, 2)


@operation(types.none, types.intp)
def prefetch_near(b, address):
    """Ask for the cache line at `address` in the first-level cache; never faults."""
    _prefetch(b, address, 3)


@operation(types.int64, types.intp)
def load_int(b, address):
    """One int64."""
    return load_at(b, address, I64)


@operation(types.int32, types.intp)
def load_i32(b, address):
    """One int32."""
    return load_at(b, address, I32)


@operation(types.none, types.intp, types.int32)
def store_i32(b, address, value):
    """Write one int32."""
    store_at(b, value, address)


@operation(types.float32, types.intp)
def load_float(b, address):
    """One float."""
    return load_at(b, address, F32)


@operation(types.none, types.intp, types.float32)
def store_float(b, address, value):
    """Write one float."""
    store_at(b, value, address)


@operation(types.int64, types.intp)
def load_byte(b, address):
    """One unsigned byte."""
    return b.zext(load_at(b, address, I8), I64)


@operation(types.float32, types.intp)
def load_bfloat(b, address):
    """One bfloat16 as a float."""
    return b.bitcast(b.shl(b.zext(load_at(b, address, I16), I32), I32(16)), F32)


@operation(types.float32, types.intp)
def load_half(b, address):
    """One finite half as a float."""
    return extend_half(b, load_at(b, address, I16))


@operation(types.none, types.intp, types.float32)
def store_half(b, address, value):
    """Write one float as a half: nearest even, saturated at the largest finite half."""
    store_at(b, truncate_to_half(b, value), address)


@operation(types.none, types.intp, f32x16)
def store_f16(b, address, value):
    """Write 16 floats as halves: nearest even, saturated at the largest finite half."""
    store_at(b, truncate_to_half(b, value), address)


@operation(f32x16, f32x16)
def round_to_half(b, value):
    """The nearest half to each float, as a float: what store_f16 would write."""
    return extend_half(b, truncate_to_half(b, value))


@operation(i32x16, types.intp)
def load_i32x16(b, address):
    """16 int32."""
    return load_at(b, address, i32x16.ir)


@operation(types.none, types.intp, i32x16)
def store_i32x16(b, address, value):
    """Write 16 int32."""
    store_at(b, value, address)


@operation(types.none, types.intp, u8x64)
def store_u8(b, address, value):
    """Write 64 bytes."""
    store_at(b, value, address)


@operation(types.none, types.intp, u16x32)
def store_halves(b, address, value):
    """Write 32 elements of two bytes."""
    store_at(b, value, address)


@operation(types.none, types.intp, i32x16)
def store_i8(b, address, value):
    """Write the low byte of each lane: 16 bytes."""
    store_at(b, b.trunc(value, ir.VectorType(I8, 16)), address)


@operation(types.none, types.intp, types.int64)
def store_byte(b, address, value):
    """Write the low byte of an integer."""
    store_at(b, b.trunc(value, I8), address)


@operation(f32x16, types.intp)
def load_i8_as_float(b, address):
    """16 signed bytes as floats."""
    codes = b.sext(load_at(b, address, ir.VectorType(I8, 16)), i32x16.ir)
    return b.sitofp(codes, f32x16.ir)


@operation(f32x16, types.intp)
def load_u8_as_float(b, address):
    """16 unsigned bytes as floats."""
    codes = b.zext(load_at(b, address, ir.VectorType(I8, 16)), i32x16.ir)
    return b.sitofp(codes, f32x16.ir)


@operation(f32x16, types.intp, types.int64)
def load_nibbles_as_float(b, address, shift):
    """The nibbles of 16 bytes at bit `shift` (0 or 4) as floats."""
    codes = b.zext(load_at(b, address, ir.VectorType(I8, 16)), i32x16.ir)
    shifted = b.lshr(codes, splat_lanes(b, b.trunc(shift, I32), 16))
    return b.sitofp(b.and_(shifted, constant(i32x16.ir, 15)), f32x16.ir)
