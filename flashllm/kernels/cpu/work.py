"""What every CPU kernel begins with: its arguments, and its share of the work."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from flashllm.kernels import jit
from flashllm.kernels.simd import I64, load_at


@intrinsic(prefer_literal=True)
def unpack(context: Any, args: Any, count: Any) -> Any:
    """The first `count` (a literal) int64 arguments at address `args`, as a tuple."""
    length = count.literal_value
    result = types.UniTuple(types.int64, length)

    def codegen(ctx: Any, b: Any, sig: Any, values: Any) -> Any:
        loaded = [load_at(b, b.add(values[0], I64(8 * i)), I64) for i in range(length)]
        return ctx.make_tuple(b, result, loaded)

    return result(types.intp, count), codegen


@jit.inline
def share(items, thread, threads):
    """This thread's contiguous part of range(items)."""
    return items * thread // threads, items * (thread + 1) // threads
