"""Which weights stay in memory under a budget, beside what else the process needs."""

from __future__ import annotations

from collections.abc import Callable

from flashllm.cache.policy import Residency, Scan, pinned_scan, smallest_room
from flashllm.errors import OutOfBudget
from flashllm.model.memory import FIXED_BYTES, budget_for, weights_room
from flashllm.sizes import format_size


def fit(
    scan: Scan,
    budget: int | None,
    *,
    kv: int,
    scratch: int,
    taken: int = 0,
    fitting_context: Callable[[], int] = lambda: 0,
) -> Residency:
    """As many weights as fit.

    All in bytes. budget: of the whole process, None for no limit. kv: keys and values of full
    contexts. scratch: the model's buffers. taken: what other models in this process hold.
    fitting_context: the tokens of context that would fit, 0 if unknown. Raises OutOfBudget, with
    the figures and what would fit, if not even streaming fits.
    """
    if budget is None:
        return pinned_scan(scan, None)
    needed = least_budget(scan, kv=kv, scratch=scratch, taken=taken)
    if budget < needed:
        others = f", {format_size(taken)} other open models" if taken else ""
        tokens = fitting_context()
        context = f"a context of {tokens} tokens, which fits" if tokens else "a smaller context"
        raise OutOfBudget(
            f"at least {format_size(needed)} are needed ({format_size(_least_room(scan))} to "
            f"stream the weights, {format_size(kv)} KV cache, {format_size(scratch)} buffers, "
            f"{format_size(FIXED_BYTES)} flashllm itself{others}) but the budget is "
            f"{format_size(budget)}; allow more memory (--mem), or ask for {context} (-c) "
            "or for keys and values in 8 bits (--kv-dtype q8)"
        )
    return pinned_scan(scan, weights_room(budget - taken, kv, scratch))


def least_budget(scan: Scan, *, kv: int, scratch: int, taken: int = 0) -> int:
    """The least budget with which `fit` finds a way; all in bytes, as there."""
    return taken + budget_for(_least_room(scan), kv, scratch)


def _least_room(scan: Scan) -> int:
    return min(smallest_room(scan), scan.nbytes)
