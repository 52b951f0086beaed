"""Memory arithmetic of models that are wholly resident."""

from __future__ import annotations

from flashllm.errors import OutOfBudget
from flashllm.model.config import ModelConfig
from flashllm.sizes import format_size

FIXED_BYTES = 250_000_000
"""What the process holds besides weights and KV caches: interpreter, libraries, compiled kernels,
activations. See docs/measurements.md."""


def kv_bytes(config: ModelConfig, n_ctx: int) -> int:
    """Bytes of the float16 keys and values of `n_ctx` tokens."""
    return 2 * 2 * config.n_layers * config.kv_size * n_ctx


def check(budget: int | None, weights: int, kv: int) -> None:
    """Raise OutOfBudget, with the figures, if weights and KV caches do not fit; None: no limit."""
    needed = FIXED_BYTES + weights + kv
    if budget is not None and needed > budget:
        raise OutOfBudget(
            f"{format_size(needed)} are needed ({format_size(weights)} weights, {format_size(kv)} "
            f"KV cache, {format_size(FIXED_BYTES)} for flashllm itself) but the budget is "
            f"{format_size(budget)}; allow more memory (--mem) or a smaller context"
        )
