"""What a model needs of a computer, and whether it fits: arithmetic only."""

from __future__ import annotations

import dataclasses

from flashllm.errors import InvalidInput
from flashllm.model.config import ModelConfig
from flashllm.model.memory import (
    FIXED_BYTES,
    KV_BLOCK,
    KVDtype,
    kv_bytes,
    scratch_bytes,
    weights_room,
)
from flashllm.sizes import format_size, parse_size

__all__ = [
    "DEFAULT_CONTEXT",
    "FIXED_BYTES",
    "KVDtype",
    "Plan",
    "Sizes",
    "bytes_allowed",
    "kv_bytes",
    "plan",
    "scratch_bytes",
    "weights_room",
]

DEFAULT_CONTEXT = 4096
"""Tokens of context for sessions that do not say, if the model was made for as many."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of a model in the flash format.

    weights: the units, without padding. files: the weight files, which is what memory holds.
    stored: all its files on disk. fetched: what must be downloaded first. to_store: what
    converting it will write.
    """

    weights: int
    files: int
    stored: int
    fetched: int = 0
    to_store: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """Whether and how a model runs within `budget` bytes, with n_ctx tokens of context.

    All in bytes. weight_bytes: the weights as they are stored, without padding. stored_bytes: the
    model's files. disk_bytes: disk needed before it runs, to download and to convert it; 0 for a
    model that is here. resident_bytes: weights in memory, in this version all of them. kv_bytes:
    keys and values of a full context, kept in kv_dtype. overhead_bytes: the process itself. dtypes:
    those of the weights, the most frequent first. warnings: what the reader should know, a sentence
    each.
    """

    name: str
    family: str
    dtypes: tuple[str, ...]
    budget: int
    n_ctx: int
    weight_bytes: int
    stored_bytes: int
    disk_bytes: int
    resident_bytes: int
    kv_dtype: KVDtype
    kv_bytes: int
    overhead_bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Memory that the whole process takes once the context is full."""
        return self.resident_bytes + self.kv_bytes + self.overhead_bytes

    @property
    def smallest_budget(self) -> int:
        """The least memory that works with this context: all of it, while weights stay resident."""
        return self.total_bytes

    @property
    def fits(self) -> bool:
        """Whether the model runs within the budget."""
        return self.smallest_budget <= self.budget

    @property
    def largest_context(self) -> int:
        """The most tokens of context that fit the budget, n_ctx at most; 0 if not even one does."""
        block = self.kv_bytes // -(-self.n_ctx // KV_BLOCK)
        room = self.budget - self.resident_bytes - self.overhead_bytes
        return min(self.n_ctx, max(0, room // block * KV_BLOCK))

    @property
    def verdict(self) -> str:
        """Whether it fits, in one sentence that says what to do if it does not."""
        need = f"needs {format_size(self.total_bytes)} of the {format_size(self.budget)} allowed"
        if self.fits:
            return f"fits: {need}"
        parts = (
            f"{format_size(self.resident_bytes)} weights, {format_size(self.kv_bytes)} KV cache, "
            f"{format_size(self.overhead_bytes)} for flashllm itself"
        )
        if self.largest_context:
            advice = f"a context of {self.largest_context} tokens would fit (-c)"
        elif self.dtypes[:1] and self.dtypes[0] not in ("q4", "q4m"):
            advice = "fewer bits (--dtype q4) or more memory would help"
        else:
            advice = "more memory or a smaller model would help"
        return f"does not fit: {need} ({parts}); {advice}"

    @property
    def summary(self) -> str:
        """What the model is and whether it fits, in one sentence."""
        weights = f"{format_size(self.weight_bytes)} of {'/'.join(self.dtypes)} weights"
        return f"{self.name} ({self.family} family, {weights}) {self.verdict}"


def plan(
    name: str,
    config: ModelConfig,
    sizes: Sizes,
    dtypes: tuple[str, ...],
    *,
    mem_budget: int | str,
    n_ctx: int | None = None,
    kv_dtype: KVDtype = "f16",
    warnings: tuple[str, ...] = (),
) -> Plan:
    """The plan of a model of this shape and these sizes.

    mem_budget: bytes, or text such as "6GB" or "1.5x" (of the weights). n_ctx: by default as a
    session's. kv_dtype: what its keys and values are kept in. Raises InvalidInput for a context
    that the model was not made for, no size, or no dtype.
    """
    if n_ctx is not None and not 0 < n_ctx <= config.context_length:
        raise InvalidInput(
            f"a context of {n_ctx} tokens; this model was made for 1 to {config.context_length}"
        )
    context = n_ctx or min(DEFAULT_CONTEXT, config.context_length)
    return Plan(
        name=name,
        family=config.family,
        dtypes=dtypes,
        budget=bytes_allowed(mem_budget, sizes.files),
        n_ctx=context,
        weight_bytes=sizes.weights,
        stored_bytes=sizes.stored,
        disk_bytes=sizes.fetched + sizes.to_store,
        resident_bytes=sizes.files,
        kv_dtype=kv_dtype,
        kv_bytes=kv_bytes(config, context, kv_dtype),
        overhead_bytes=FIXED_BYTES,
        warnings=warnings,
    )


def bytes_allowed(mem_budget: int | str, weights: int) -> int:
    """The bytes that a budget means for a model of `weights` bytes. Raises InvalidInput."""
    if isinstance(mem_budget, str):
        return parse_size(mem_budget).resolve(weights)
    return mem_budget
