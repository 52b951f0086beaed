"""Vector types for Numba, and how an operation on them is defined from LLVM IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class VectorType(types.Type):
    """A Numba type that is one LLVM vector of `lanes` elements."""

    def __init__(self, element: ir.Type, lanes: int):
        self.ir = ir.VectorType(element, lanes)
        super().__init__(name=f"<{lanes} x {element}>")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: VectorType):
        super().__init__(manager, fe_type, fe_type.ir)


f32x16 = VectorType(F32, 16)
i32x16 = VectorType(I32, 16)
u8x64 = VectorType(I8, 64)
u16x32 = VectorType(I16, 32)


# ------------------------------------------------------------------ building blocks


def constant(vector: ir.VectorType, values: Any) -> ir.Constant:
    """A vector constant: the same number in every lane, or a sequence."""
    if not isinstance(values, Sequence):
        values = [values] * vector.count
    return ir.Constant(vector, list(values))


def splat_lanes(b: ir.IRBuilder, value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = b.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return shuffle(b, first, first, [0] * lanes)


def shuffle(b: ir.IRBuilder, x: Any, y: Any, lanes: Sequence[int]) -> Any:
    """The named lanes of x followed by y."""
    return b.shuffle_vector(x, y, constant(ir.VectorType(I32, len(lanes)), lanes))


def load_at(b: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    """Load an unaligned value of an LLVM type."""
    return b.load(b.inttoptr(address, kind.as_pointer()), align=1)


def store_at(b: ir.IRBuilder, value: Any, address: Any) -> None:
    """Store a value without assuming alignment."""
    b.store(value, b.inttoptr(address, value.type.as_pointer()), align=1)


def call(b: ir.IRBuilder, name: str, result: ir.Type, *args: Any) -> Any:
    """Call an LLVM intrinsic by its name."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def operation(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """An intrinsic from `build(builder, *args)`, with a fixed signature."""

    def wrap(build: Callable[..., Any]) -> Any:
        def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
            value = build(b, *args)
            return context.get_dummy_value() if value is None else value

        typed = (result(*params), codegen)
        # Numba reads an intrinsic's arity off its signature, so there is one for each.
        typer: Callable[..., Any] = (
            lambda context: typed,
            lambda context, x: typed,
            lambda context, x, y: typed,
            lambda context, x, y, z: typed,
            lambda context, x, y, z, w: typed,
        )[len(params)]
        typer.__name__ = build.__name__
        typer.__doc__ = build.__doc__
        return intrinsic(typer)

    return wrap
