"""Packed elements put where the set bits of a mask are: one instruction where the CPU has it
(AVX-512 VBMI2), a table of byte shuffles elsewhere (SSSE3, NEON), single loads as the last resort.

All of them may read as many bytes past the last element as a vector has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types

from flashllm.kernels import jit
from flashllm.kernels.simd.halves import extend_half
from flashllm.kernels.simd.vectors import (
    I1,
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
    shuffle,
    u8x64,
    u16x32,
)

_BYTES, _HALVES = ir.VectorType(I8, 16), ir.VectorType(I16, 8)
_NOTHING = 0x80
"""An index that a byte shuffle answers with 0, on x86 and on ARM."""


@operation(types.int64, types.int64)
def popcount(b, mask):
    """How many bits are set."""
    return b.ctpop(mask)


@operation(types.int64, types.int64)
def popcount_low(b, mask):
    """How many of the low 32 bits are set."""
    return b.zext(b.ctpop(b.trunc(mask, I32)), I64)


@operation(u8x64, types.intp, types.int64)
def expand_q8(b, address, mask):
    """Bytes from `address` on where the bits of mask are set, 128 elsewhere."""
    if _has_expand():
        return _expanded(b, load_at(b, address, u8x64.ir), mask, 128)
    if _has_shuffle():
        return _bytes_by_parts(b, address, mask, 128)
    return _by_single_loads(b, address, mask, u8x64.ir, 128)


@operation(u8x64, types.intp, types.int64)
def expand_low(b, address, mask):
    """The low nibbles of bytes from `address` on where the bits of mask are set, 8 elsewhere."""
    return _expanded_nibbles(b, address, mask, lambda x: b.and_(x, constant(x.type, 15)))


@operation(u8x64, types.intp, types.int64)
def expand_high(b, address, mask):
    """The high nibbles of bytes from `address` on where the bits of mask are set, 8 elsewhere."""
    return _expanded_nibbles(b, address, mask, lambda x: b.lshr(x, constant(x.type, 4)))


@operation(u16x32, types.intp, types.int64)
def expand_halves(b, address, mask):
    """Two-byte elements from `address` on where the low 32 bits of mask are set, 0 elsewhere."""
    mask = b.trunc(mask, I32)
    if _has_expand():
        return _expanded(b, load_at(b, address, u16x32.ir), mask, 0)
    if not _has_shuffle():
        return _by_single_loads(b, address, mask, u16x32.ir, 0)
    parts = []
    for part in range(4):
        byte, before = _byte_of_mask(b, mask, part)
        data = load_at(b, b.add(address, b.shl(before, I64(1))), _BYTES)
        lanes = load_at(b, b.add(_table(b, "halves"), b.shl(byte, I64(4))), _BYTES)
        parts.append(b.bitcast(_shuffled(b, data, lanes), _HALVES))
    low, high = (shuffle(b, *parts[i : i + 2], range(16)) for i in (0, 2))
    return shuffle(b, low, high, range(32))


@operation(f32x16, u16x32)
def low_f16(b, x):
    """The first 16 of 32 finite halves as floats."""
    return extend_half(b, shuffle(b, x, x, range(16)))


@operation(f32x16, u16x32)
def high_f16(b, x):
    """The last 16 of 32 finite halves as floats."""
    return extend_half(b, shuffle(b, x, x, range(16, 32)))


@operation(f32x16, u16x32)
def low_bf16(b, x):
    """The first 16 of 32 bfloat16 as floats."""
    return _extend_bfloat(b, shuffle(b, x, x, range(16)))


@operation(f32x16, u16x32)
def high_bf16(b, x):
    """The last 16 of 32 bfloat16 as floats."""
    return _extend_bfloat(b, shuffle(b, x, x, range(16, 32)))


@operation(u8x64, u8x64, u8x64)
def join_nibbles(b, low, high):
    """low | high << 4 of each byte."""
    return b.or_(low, b.shl(high, constant(high.type, 4)))


def _extend_bfloat(b: ir.IRBuilder, half: Any) -> Any:
    wide = b.zext(half, i32x16.ir)
    return b.bitcast(b.shl(wide, constant(i32x16.ir, 16)), f32x16.ir)


def _has_expand() -> bool:
    return "avx512vbmi2" in jit.cpu_features()


def _has_shuffle() -> bool:
    return jit.architecture() == "arm" or "ssse3" in jit.cpu_features()


def _expanded(b: ir.IRBuilder, data: Any, mask: Any, filler: int) -> Any:
    """The instruction. Its form that loads is slow: Zen 5 expands 47 instead of 71 G bytes a second
    with it. So the load is hidden from LLVM, which would fold it in, behind assembly of no code.
    """
    hidden = b.asm(ir.FunctionType(data.type, [data.type]), "", "=v,0", [data], False)
    lanes = b.bitcast(mask, ir.VectorType(I1, data.type.count))
    name = f"llvm.x86.avx512.mask.expand.v{data.type.count}{data.type.element}"
    return call(b, name, data.type, hidden, constant(data.type, filler), lanes)


def _expanded_nibbles(
    b: ir.IRBuilder, address: Any, mask: Any, nibbles: Callable[[Any], Any]
) -> Any:
    if _has_expand():
        return _expanded(b, nibbles(load_at(b, address, u8x64.ir)), mask, 8)
    if _has_shuffle():
        return _bytes_by_parts(b, address, mask, 8, nibbles)
    found = nibbles(_by_single_loads(b, address, mask, u8x64.ir, 0))
    there = b.bitcast(mask, ir.VectorType(I1, 64))
    return b.select(there, found, constant(u8x64.ir, 8))


def _bytes_by_parts(
    b: ir.IRBuilder,
    address: Any,
    mask: Any,
    filler: int,
    decode: Callable[[Any], Any] = lambda data: data,
) -> Any:
    """Bytes, eight at a time. The table fills with 0: so `filler` is taken off before, by exclusive
    or, and put back behind it.
    """
    parts = []
    for part in range(8):
        byte, before = _byte_of_mask(b, mask, part)
        data = decode(load_at(b, b.add(address, before), _BYTES))
        lanes = load_at(b, b.add(_table(b, "bytes"), b.shl(byte, I64(4))), _BYTES)
        parts.append(_shuffled(b, b.xor(data, constant(_BYTES, filler)), lanes))
    eights = [shuffle(b, *parts[i : i + 2], [*range(8), *range(16, 24)]) for i in range(0, 8, 2)]
    halves = [shuffle(b, *eights[i : i + 2], range(32)) for i in (0, 2)]
    return b.xor(shuffle(b, *halves, range(64)), constant(u8x64.ir, filler))


def _byte_of_mask(b: ir.IRBuilder, mask: Any, part: int) -> tuple[Any, Any]:
    """Byte `part` of a mask, and how many bits are set below it: i64 both."""
    shifted = b.lshr(mask, ir.Constant(mask.type, 8 * part))
    byte = b.and_(shifted, ir.Constant(mask.type, 255))
    below = b.ctpop(b.and_(mask, ir.Constant(mask.type, (1 << (8 * part)) - 1)))
    if mask.type == I64:
        return byte, below
    return b.zext(byte, I64), b.zext(below, I64)


def _shuffled(b: ir.IRBuilder, data: Any, lanes: Any) -> Any:
    """Bytes of data by their places; 0 for _NOTHING."""
    if jit.architecture() == "arm":
        return call(b, "llvm.aarch64.neon.tbl1.v16i8", _BYTES, data, lanes)
    return call(b, "llvm.x86.ssse3.pshuf.b.128", _BYTES, data, lanes)


def _by_single_loads(b: ir.IRBuilder, address: Any, mask: Any, kind: Any, filler: int) -> Any:
    lanes = b.bitcast(mask, ir.VectorType(I1, kind.count))
    pointer = b.inttoptr(address, kind.element.as_pointer())
    name = f"llvm.masked.expandload.v{kind.count}{kind.element}"
    return call(b, name, kind, pointer, lanes, constant(kind, filler))


def _table(b: ir.IRBuilder, name: str) -> Any:
    """Where 256 rows of 16 places are: of the elements that a byte of a mask puts where."""
    kind = ir.ArrayType(I8, 256 * 16)
    full = f"flashllm.expand.{name}"
    if full in b.module.globals:
        table = b.module.get_global(full)
    else:
        table = ir.GlobalVariable(b.module, kind, full)
        table.linkage = "internal"
        table.global_constant = True
        table.initializer = ir.Constant(kind, bytearray(_places(2 if name == "halves" else 1)))
    return b.ptrtoint(table, I64)


def _places(size: int) -> list[int]:
    """For each byte of a mask the places of its elements, of `size` bytes, in 16 bytes."""
    rows = []
    for mask in range(256):
        row, taken = [_NOTHING] * 16, 0
        for lane in range(8):
            if mask >> lane & 1:
                for i in range(size):
                    row[size * lane + i] = size * taken + i
                taken += 1
        rows += row
    return rows
