"""Refuses what the memory budget has no room for."""

from __future__ import annotations

from flashllm.errors import OutOfBudget
from flashllm.model.plan import FIXED_BYTES
from flashllm.sizes import format_size


def check(budget: int | None, weights: int, kv: int) -> None:
    """Raise OutOfBudget, with the figures, if weights and KV caches do not fit; None: no limit."""
    needed = FIXED_BYTES + weights + kv
    if budget is not None and needed > budget:
        raise OutOfBudget(
            f"{format_size(needed)} are needed ({format_size(weights)} weights, {format_size(kv)} "
            f"KV cache, {format_size(FIXED_BYTES)} for flashllm itself) but the budget is "
            f"{format_size(budget)}; allow more memory (--mem) or a smaller context"
        )
