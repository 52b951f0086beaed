"""Vector values inside Numba: f32x16, i32x16, u8x64 and the operations kernels are written in.

Each type is one LLVM vector; each operation is a few lines of LLVM IR. Kernels stay ordinary
loops over integer addresses; LLVM allocates registers and folds loads. Loads and stores assume no
alignment. Addresses keep nothing alive: the caller of a kernel owns the memory.

LLVM splits a 512-bit vector where the CPU has smaller ones, so the same source runs everywhere;
only the int8 dot product and half conversion choose instructions, when code is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from flashllm.kernels import jit

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class VectorType(types.Type):  # type: ignore[misc]
    """A Numba type that is one LLVM vector of `lanes` elements."""

    def __init__(self, element: ir.Type, lanes: int):
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"<{lanes} x {element}>")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: VectorType):
        super().__init__(manager, fe_type, fe_type.ir)


f32x16 = VectorType(F32, 16)
i32x16 = VectorType(I32, 16)
u8x64 = VectorType(I8, 64)


# ------------------------------------------------------------------ building blocks


def _constant(vector: ir.VectorType, values: Any) -> ir.Constant:
    if not isinstance(values, Sequence):
        values = [values] * vector.count
    return ir.Constant(vector, list(values))


def _splat(b: ir.IRBuilder, value: Any, lanes: int) -> Any:
    vector = ir.VectorType(value.type, lanes)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return _shuffle(b, first, first, [0] * lanes)


def _shuffle(b: ir.IRBuilder, x: Any, y: Any, lanes: Sequence[int]) -> Any:
    return b.shuffle_vector(x, y, _constant(ir.VectorType(I32, len(lanes)), lanes))


def load_at(b: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    """Load an unaligned value of an LLVM type: for intrinsics of other files."""
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def _store(b: ir.IRBuilder, value: Any, address: Any) -> None:
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def _call(b: ir.IRBuilder, name: str, result: ir.Type, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def _operation(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from `build(builder, *args)`, with a fixed signature."""

    def wrap(build: Callable[..., Any]) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = build(b, *args)
            return context.get_dummy_value() if value is None else value

        names = ", ".join(f"a{i}" for i in range(len(params)))
        namespace: dict[str, Any] = {"result": result, "params": params, "codegen": codegen}
        exec(f"def typer(context, {names}):\n    return result(*params), codegen", namespace)
        typer = namespace["typer"]
        typer.__name__ = build.__name__
        typer.__doc__ = build.__doc__
        return intrinsic(typer)

    return wrap


# ------------------------------------------------------------------ loads and stores


@_operation(f32x16, types.intp)
def load_f32(b, address):
    """16 floats."""
    return load_at(b, address, f32x16.ir)


@_operation(types.none, types.intp, f32x16)
def store_f32(b, address, value):
    """Write 16 floats."""
    _store(b, value, address)


@_operation(u8x64, types.intp)
def load_u8(b, address):
    """64 bytes."""
    return load_at(b, address, u8x64.ir)


@_operation(f32x16, types.intp)
def load_bf16(b, address):
    """16 bfloat16 as floats: the upper half of a float, so a shift."""
    wide = b.zext(load_at(b, address, ir.VectorType(I16, 16)), i32x16.ir)
    return b.bitcast(b.shl(wide, _constant(i32x16.ir, 16)), f32x16.ir)


def _converts_halves() -> bool:
    """Whether the CPU converts halves. Without it LLVM calls a symbol that kills the process."""
    return jit.architecture() == "arm" or "f16c" in jit.cpu_features()


def _like(value: Any, number: Any, element: ir.Type) -> ir.Constant:
    """A constant of `element`, as many lanes as value has (a scalar has none)."""
    if isinstance(value.type, ir.VectorType):
        return _constant(ir.VectorType(element, value.type.count), number)
    return ir.Constant(element, number)


def _extend_half(b: ir.IRBuilder, half: Any) -> Any:
    """Finite halves (as i16) to floats.

    Without conversion instructions: shift the bits into a float's place and multiply by 2^112,
    which mends the exponent of normal and subnormal numbers alike, exactly.
    """
    vector = isinstance(half.type, ir.VectorType)
    floats, ints, halves = (f32x16.ir, i32x16.ir, ir.VectorType(F16, 16)) if vector else (F32, I32, F16)
    if _converts_halves():
        return b.fpext(b.bitcast(half, halves), floats)
    bits = b.zext(half, ints)
    magnitude = b.shl(b.and_(bits, _like(bits, 0x7FFF, I32)), _like(bits, 13, I32))
    value = b.fmul(b.bitcast(magnitude, floats), _like(bits, 2.0**112, F32))
    sign = b.shl(b.and_(bits, _like(bits, 0x8000, I32)), _like(bits, 16, I32))
    return b.bitcast(b.or_(b.bitcast(value, ints), sign), floats)


def _truncate_to_half(b: ir.IRBuilder, value: Any) -> Any:
    """Floats to halves (as i16): nearest even, saturated at the largest finite half.

    Without conversion instructions: an addition rounds small numbers at a half's subnormal step,
    the others round by their own bits.
    """
    vector = isinstance(value.type, ir.VectorType)
    ints, halves = (i32x16.ir, ir.VectorType(I16, 16)) if vector else (I32, I16)
    for sign, limit in ((">", 65504.0), ("<", -65504.0)):
        bound = _like(value, limit, F32)
        value = b.select(b.fcmp_ordered(sign, value, bound), bound, value)
    if _converts_halves():
        return b.bitcast(b.fptrunc(value, ir.VectorType(F16, 16) if vector else F16), halves)
    bits = b.bitcast(value, ints)
    sign_bit = b.and_(b.lshr(bits, _like(bits, 16, I32)), _like(bits, 0x8000, I32))
    magnitude = b.and_(bits, _like(bits, 0x7FFFFFFF, I32))
    odd = b.and_(b.lshr(magnitude, _like(bits, 13, I32)), _like(bits, 1, I32))
    rebased = b.add(magnitude, _like(bits, 0xFFF - (112 << 23), I32))
    normal = b.lshr(b.add(rebased, odd), _like(bits, 13, I32))
    sum_ = b.fadd(b.bitcast(magnitude, value.type), _like(value, 0.5, F32))
    subnormal = b.sub(b.bitcast(sum_, ints), _like(bits, 0x3F000000, I32))
    is_small = b.icmp_unsigned("<", magnitude, _like(bits, 113 << 23, I32))
    return b.trunc(b.or_(b.select(is_small, subnormal, normal), sign_bit), halves)


@_operation(f32x16, types.intp)
def load_f16(b, address):
    """16 finite halves as floats."""
    return _extend_half(b, load_at(b, address, ir.VectorType(I16, 16)))


@_operation(types.none, types.intp, f32x16)
def store_f16(b, address, value):
    """Write 16 floats as halves: nearest even, saturated at the largest finite half."""
    _store(b, _truncate_to_half(b, value), address)


@_operation(u8x64, types.intp)
def broadcast_4(b, address):
    """4 bytes repeated 16 times: four int8 activations against four columns of 16 rows."""
    return b.bitcast(_splat(b, load_at(b, address, I32), 16), u8x64.ir)


def _prefetch(b: ir.IRBuilder, address: Any, locality: int) -> None:
    pointer = b.inttoptr(address, I8.as_pointer())
    read, data = I32(0), I32(1)
    _call(b, "llvm.prefetch.p0", ir.VoidType(), pointer, read, I32(locality), data)


@_operation(types.none, types.intp)
def prefetch(b, address):
    """Ask for the cache line at `address` in the second-level cache; never faults."""
    _prefetch(b, address, 2)


@_operation(types.none, types.intp)
def prefetch_near(b, address):
    """Ask for the cache line at `address` in the first-level cache; never faults."""
    _prefetch(b, address, 3)


# ------------------------------------------------------------------ scalars


@_operation(types.int64, types.intp)
def load_int(b, address):
    """One int64."""
    return load_at(b, address, I64)


@_operation(types.int32, types.intp)
def load_i32(b, address):
    """One int32."""
    return load_at(b, address, I32)


@_operation(types.none, types.intp, types.int32)
def store_i32(b, address, value):
    """Write one int32."""
    _store(b, value, address)


@_operation(types.float32, types.intp)
def load_float(b, address):
    """One float."""
    return load_at(b, address, F32)


@_operation(types.none, types.intp, types.float32)
def store_float(b, address, value):
    """Write one float."""
    _store(b, value, address)


@_operation(types.int64, types.intp)
def load_byte(b, address):
    """One unsigned byte."""
    return b.zext(load_at(b, address, I8), I64)


@_operation(types.float32, types.intp)
def load_bfloat(b, address):
    """One bfloat16 as a float."""
    return b.bitcast(b.shl(b.zext(load_at(b, address, I16), I32), I32(16)), F32)


@_operation(types.float32, types.intp)
def load_half(b, address):
    """One finite half as a float."""
    return _extend_half(b, load_at(b, address, I16))


@_operation(types.none, types.intp, types.float32)
def store_half(b, address, value):
    """Write one float as a half, rounded and saturated as store_f16 does."""
    _store(b, _truncate_to_half(b, value), address)


@_operation(types.float32, types.int64)
def float_from_bits(b, bits):
    """The float whose bits are the low 32 of an integer: how programs carry float arguments."""
    return b.bitcast(b.trunc(bits, I32), F32)


# ------------------------------------------------------------------ arithmetic


@_operation(f32x16)
def zero(b):
    """16 times 0.0."""
    return _constant(f32x16.ir, 0.0)


@_operation(f32x16, types.float32)
def splat(b, value):
    """A float in every lane."""
    return _splat(b, value, 16)


@_operation(i32x16, types.intp)
def load_i32x16(b, address):
    """16 int32."""
    return load_at(b, address, i32x16.ir)


@_operation(i32x16, types.int32)
def splat_i32(b, value):
    """An int32 in every lane."""
    return _splat(b, value, 16)


@_operation(f32x16, f32x16, f32x16, f32x16)
def fma(b, x, y, z):
    """x * y + z, rounded once where the CPU can, twice where it cannot (the same everywhere else)."""
    if jit.architecture() == "arm" or "fma" in jit.cpu_features():
        return _call(b, "llvm.fma.v16f32", f32x16.ir, x, y, z)
    return b.fadd(b.fmul(x, y), z)


@_operation(f32x16, f32x16, f32x16)
def add(b, x, y):
    """x + y."""
    return b.fadd(x, y)


@_operation(f32x16, f32x16, f32x16)
def sub(b, x, y):
    """x - y."""
    return b.fsub(x, y)


@_operation(f32x16, f32x16, f32x16)
def mul(b, x, y):
    """x * y."""
    return b.fmul(x, y)


@_operation(f32x16, f32x16, f32x16)
def div(b, x, y):
    """x / y."""
    return b.fdiv(x, y)


@_operation(f32x16, f32x16, f32x16)
def maximum(b, x, y):
    """The larger of each lane."""
    return _call(b, "llvm.maxnum.v16f32", f32x16.ir, x, y)


@_operation(f32x16, f32x16, f32x16)
def minimum(b, x, y):
    """The smaller of each lane."""
    return _call(b, "llvm.minnum.v16f32", f32x16.ir, x, y)


@_operation(f32x16, f32x16)
def absolute(b, x):
    """|x|."""
    return _call(b, "llvm.fabs.v16f32", f32x16.ir, x)


@_operation(i32x16, i32x16, i32x16)
def add_i32(b, x, y):
    """x + y."""
    return b.add(x, y)


@_operation(f32x16, i32x16)
def to_float(b, x):
    """int32 to float."""
    return b.sitofp(x, f32x16.ir)


@_operation(i32x16, f32x16)
def to_int(b, x):
    """float to int32, towards zero; the caller rounds first."""
    return b.fptosi(x, i32x16.ir)


@_operation(f32x16, i32x16)
def power_of_two(b, n):
    """2^n for -126 <= n <= 127, by writing the exponent."""
    biased = b.add(n, _constant(i32x16.ir, 127))
    return b.bitcast(b.shl(biased, _constant(i32x16.ir, 23)), f32x16.ir)


@_operation(types.none, types.intp, i32x16)
def store_i8(b, address, value):
    """Write the low byte of each lane: 16 bytes."""
    _store(b, b.trunc(value, ir.VectorType(I8, 16)), address)


@_operation(f32x16, types.intp)
def load_u8_as_float(b, address):
    """16 unsigned bytes as floats."""
    codes = b.zext(load_at(b, address, ir.VectorType(I8, 16)), i32x16.ir)
    return b.sitofp(codes, f32x16.ir)


@_operation(f32x16, types.intp, types.int64)
def load_nibbles_as_float(b, address, shift):
    """The nibbles of 16 bytes at bit `shift` (0 or 4) as floats."""
    codes = b.zext(load_at(b, address, ir.VectorType(I8, 16)), i32x16.ir)
    shifted = b.lshr(codes, _splat(b, b.trunc(shift, I32), 16))
    return b.sitofp(b.and_(shifted, _constant(i32x16.ir, 15)), f32x16.ir)


@_operation(f32x16, f32x16, types.int64, f32x16)
def keep_first(b, x, count, other):
    """Lanes 0 .. count-1 of x, the rest of other."""
    lanes = _constant(i32x16.ir, range(16))
    inside = b.icmp_signed("<", lanes, _splat(b, b.trunc(count, I32), 16))
    return b.select(inside, x, other)


def _reduce(b: ir.IRBuilder, x: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Fold a vector in halves: a fixed order, so the same result wherever it is computed."""
    width = x.type.count
    while width > 1:
        width //= 2
        low = _shuffle(b, x, x, list(range(width)))
        x = combine(low, _shuffle(b, x, x, list(range(width, 2 * width))))
    return b.extract_element(x, I32(0))


@_operation(types.float32, f32x16)
def first_lane(b, x):
    """Lane 0."""
    return b.extract_element(x, I32(0))


@_operation(types.float32, f32x16)
def sum_lanes(b, x):
    """The sum of 16 lanes, in a fixed order."""
    return _reduce(b, x, b.fadd)


@_operation(types.float32, f32x16)
def max_lanes(b, x):
    """The largest of 16 lanes."""
    return _reduce(b, x, lambda p, q: b.select(b.fcmp_ordered(">", p, q), p, q))


@_operation(types.int32, i32x16)
def sum_lanes_i32(b, x):
    """The sum of 16 int32 lanes."""
    return _reduce(b, x, b.add)


@_operation(f32x16, f32x16, types.int64)
def spread_pair(b, x, pair):
    """Lanes 0-7 = x[2 * pair], lanes 8-15 = x[2 * pair + 1]: scales of two groups of 32 columns."""
    index = b.trunc(pair, I32)
    first = b.extract_element(x, b.shl(index, I32(1)))
    second = b.extract_element(x, b.add(b.shl(index, I32(1)), I32(1)))
    return _shuffle(b, _splat(b, first, 16), _splat(b, second, 16), [0] * 8 + [16] * 8)


# ------------------------------------------------------------------ int8 dot products


@_operation(u8x64, u8x64)
def low_nibbles(b, x):
    """The low 4 bits of each byte."""
    return b.and_(x, _constant(u8x64.ir, 15))


@_operation(u8x64, u8x64)
def high_nibbles(b, x):
    """The high 4 bits of each byte."""
    return b.lshr(x, _constant(u8x64.ir, 4))


@_operation(u8x64, types.intp)
def load_nibbles(b, address):
    """32 bytes as 64 codes: the low nibbles, then the high ones."""
    codes = load_at(b, address, ir.VectorType(I8, 32))
    low = b.and_(codes, _constant(codes.type, 15))
    return _shuffle(b, low, b.lshr(codes, _constant(codes.type, 4)), list(range(64)))


@_operation(i32x16, i32x16, u8x64, u8x64)
def dot_u8(b, acc, u, s):
    """acc[i] += the dot product of bytes 4i .. 4i+3 of u (0..255) and s (-128..127)."""
    return _dot(b, acc, u, s, small=False)


@_operation(i32x16, i32x16, u8x64, u8x64)
def dot_u4(b, acc, u, s):
    """dot_u8 for u <= 15, where AVX2 needs half the work."""
    return _dot(b, acc, u, s, small=True)


def _dot(b: ir.IRBuilder, acc: Any, u: Any, s: Any, *, small: bool) -> Any:
    features = jit.cpu_features()
    if "avx512vnni" in features:
        return _call(b, "llvm.x86.avx512.vpdpbusd.512", i32x16.ir, acc, u, s)
    if "avxvnni" in features:
        return _in_halves(b, acc, u, s, _dot_avxvnni)
    if "avx2" in features:
        return _in_halves(b, acc, u, s, _dot_avx2_small if small else _dot_avx2)
    return _dot_portable(b, acc, u, s)


def _in_halves(b: ir.IRBuilder, acc: Any, u: Any, s: Any, dot: Callable[..., Any]) -> Any:
    halves = []
    for half in range(2):
        lanes, data = range(8 * half, 8 * half + 8), range(32 * half, 32 * half + 32)
        parts = (_shuffle(b, acc, acc, lanes), _shuffle(b, u, u, data), _shuffle(b, s, s, data))
        halves.append(dot(b, *parts))
    return _shuffle(b, halves[0], halves[1], range(16))


def _dot_avxvnni(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    return _call(b, "llvm.x86.avx512.vpdpbusd.256", acc.type, acc, u, s)


def _dot_avx2_small(b: ir.IRBuilder, acc: Any, u: Any, s: Any, weight: int = 1) -> Any:
    """vpmaddubsw adds pairs in int16 and saturates: exact only for u <= 127."""
    pairs = _call(b, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), u, s)
    weights = _constant(pairs.type, weight)
    return b.add(acc, _call(b, "llvm.x86.avx2.pmadd.wd", acc.type, pairs, weights))


def _dot_avx2(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    """u = (u & 127) + 128 * (u >> 7): both parts are small enough."""
    low = b.and_(u, _constant(u.type, 127))
    acc = _dot_avx2_small(b, acc, low, s)
    return _dot_avx2_small(b, acc, b.lshr(u, _constant(u.type, 7)), s, weight=128)


def _dot_portable(b: ir.IRBuilder, acc: Any, u: Any, s: Any) -> Any:
    """Vector IR alone: every fourth product, widened, summed."""
    for k in range(4):
        lanes = range(k, 64, 4)
        codes = b.zext(_shuffle(b, u, u, lanes), i32x16.ir)
        acc = b.add(acc, b.mul(codes, b.sext(_shuffle(b, s, s, lanes), i32x16.ir)))
    return acc
