"""Which weights stay in memory under a budget, beside what else the process needs."""

from __future__ import annotations

from flashllm.cache.policy import Residency, Scan, pinned_scan, smallest_room
from flashllm.errors import OutOfBudget
from flashllm.model.memory import FIXED_BYTES, weights_room
from flashllm.sizes import format_size


def fit(scan: Scan, budget: int | None, *, kv: int, scratch: int, taken: int = 0) -> Residency:
    """As many weights as fit.

    All in bytes. budget: of the whole process, None for no limit. kv: keys and values of full
    contexts. scratch: the model's buffers. taken: what other models in this process hold. Raises
    OutOfBudget, with the figures, if not even streaming fits.
    """
    if budget is None:
        return pinned_scan(scan, None)
    room = weights_room(budget - taken, kv, scratch)
    least = min(smallest_room(scan), scan.nbytes)
    if room < least:
        others = f", {format_size(taken)} other open models" if taken else ""
        raise OutOfBudget(
            f"at least {format_size(budget - room + least)} are needed ({format_size(least)} to "
            f"stream the weights, {format_size(kv)} KV cache, {format_size(scratch)} buffers, "
            f"{format_size(FIXED_BYTES)} flashllm itself{others}) but the budget is "
            f"{format_size(budget)}; allow more memory (--mem), or ask for a smaller context (-c) "
            "or for keys and values in 8 bits (--kv-dtype q8)"
        )
    return pinned_scan(scan, room)
