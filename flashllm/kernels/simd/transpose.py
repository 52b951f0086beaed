"""Rows to columns: 16 vectors of 16 floats turned around."""

from __future__ import annotations

from typing import Any

from numba import types

from flashllm.kernels.simd.vectors import I64, f32x16, load_at, operation, shuffle, store_at


@operation(types.none, types.intp, types.int64, types.intp)
def transpose(b, source, stride, target):
    """16 rows of 16 floats, `stride` bytes apart, to 16 columns of 16, one after another.

    Four rounds of interleaving, 64 shuffles. Interleaving rows i and i + 8 moves every element
    one bit of its place up the row's number: after four rounds rows and columns have swapped.
    """
    rows: list[Any] = [
        load_at(b, b.add(source, b.mul(stride, I64(row))), f32x16.ir) for row in range(16)
    ]
    low = [lane // 2 + 16 * (lane % 2) for lane in range(16)]
    high = [lane + 8 for lane in low]
    for _ in range(4):
        pairs = [(rows[i], rows[i + 8]) for i in range(8)]
        rows = [shuffle(b, x, y, lanes) for x, y in pairs for lanes in (low, high)]
    for column, value in enumerate(rows):
        store_at(b, value, b.add(target, I64(64 * column)))
