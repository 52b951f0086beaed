"""What a model needs of a computer, whether it fits, and how fast it runs: arithmetic only."""

from __future__ import annotations

import bisect
import dataclasses

from flashllm.cache.policy import Residency, Scan, pinned_scan, smallest_room
from flashllm.cache.read_cost import READERS, read_gap
from flashllm.model.config import ModelConfig
from flashllm.model.memory import (
    KVDtype,
    budget_for,
    kv_bytes,
    scratch_bytes,
    weights_room,
)
from flashllm.model.sparse_plan import Firing, SparsePlan, sparse_plan
from flashllm.read_speed import ReadSpeed
from flashllm.sizes import format_size, parse_size

DEFAULT_CONTEXT = 4096
"""Tokens of context for sessions that do not say, if the model was made for as many."""

READS_AT_ONCE = 8
"""Reads under way while a model streams."""

MEMORY_SHARE = 0.95
"""The share of the memory's read rate at which a token's weights are used. See
docs/measurements.md, "Kernels against memory bandwidth"."""

BITMAP_SHARE = 0.6
"""The same of weights stored as bitmaps, by their bytes: 0.55 to 0.66 (docs/endor.md)."""

DISK_SPREAD, MEMORY_SPREAD = 1.25, 1.1
"""How far a rate measured now may be from the one measured before, either way: of 25 repetitions
in half a minute, reads of 2 MiB ran at 0.76 to 1.18 of the mean, and memory within 5 percent,
but for one."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of a model in the flash format.

    weights: the units, without padding. stored: all its files on disk. fetched: what must be
    downloaded first. to_store: what converting it will write. bitmaps: of the units, those that
    are stored as bitmaps.
    """

    weights: int
    stored: int
    fetched: int = 0
    to_store: int = 0
    bitmaps: int = 0


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a model takes of memory: its weights in their order of use, and what lies beside them.

    neurons: the most that are computed at once, with those that fill a unit. extra: bytes that only
    this kind of model takes.
    """

    config: ModelConfig
    scan: Scan
    neurons: int
    kv_dtype: KVDtype
    extra: int = 0

    @property
    def least_room(self) -> int:
        """The least memory for weights: to stream them, or for all of a small model."""
        return min(smallest_room(self.scan), self.scan.nbytes)

    def least_budget(self, n_ctx: int) -> int:
        """The least memory that works with n_ctx tokens of context."""
        scratch = scratch_bytes(self.config, self.neurons, n_ctx) + self.extra
        return budget_for(self.least_room, kv_bytes(self.config, n_ctx, self.kv_dtype), scratch)

    def largest_context(self, budget: int, most: int) -> int:
        """The most tokens of context, `most` at most, that fit `budget`; 0 if not even one does."""
        return bisect.bisect_right(range(1, most + 1), budget, key=self.least_budget)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Whether and how a model runs within `budget` bytes, with n_ctx tokens of context.

    All in bytes, but tok_s. On disk: weight_bytes, the weights as they are stored, without padding;
    stored_bytes, the model's files; disk_bytes, what is needed before it runs, to download and to
    convert it, 0 for a model that is here. In memory: pinned_bytes, weights that stay; ring_bytes,
    room that the others pass through; kv_bytes, keys and values of a full context, kept in
    kv_dtype; scratch_bytes, buffers and the tokeniser; overhead_bytes, the process itself. For each
    token: used_bytes of weights are used, bitmap_bytes of them stored as bitmaps, and
    streamed_bytes read from disk, up to slot_bytes at a time. smallest_budget: the least memory
    that works with this context; largest_context: the most tokens, n_ctx at most, that work with
    this budget, 0 if none. Of a model that does not fit, the figures are those of the smallest
    budget.

    tok_s: tokens per second of a reply that begins, least and most, from what was measured of this
    computer; None if nothing was. dtypes: those of the weights, the most frequent first. sparse:
    how it runs sparse, if it does; then streamed_bytes and used_bytes are those of a token of a
    reply, its new neurons among them if they are known. warnings: what the reader should know, a
    sentence each.
    """

    name: str
    family: str
    dtypes: tuple[str, ...]
    budget: int
    n_ctx: int
    weight_bytes: int
    stored_bytes: int
    disk_bytes: int
    pinned_bytes: int
    ring_bytes: int
    kv_dtype: KVDtype
    kv_bytes: int
    scratch_bytes: int
    overhead_bytes: int
    used_bytes: int
    bitmap_bytes: int
    streamed_bytes: int
    slot_bytes: int
    smallest_budget: int
    largest_context: int
    tok_s: tuple[float, float] | None = None
    sparse: SparsePlan | None = None
    warnings: tuple[str, ...] = ()

    @property
    def resident_bytes(self) -> int:
        """Memory for weights, those that stay and those that pass."""
        return self.pinned_bytes + self.ring_bytes

    @property
    def total_bytes(self) -> int:
        """Memory that the whole process takes once the context is full."""
        return self.resident_bytes + self.kv_bytes + self.scratch_bytes + self.overhead_bytes

    @property
    def fits(self) -> bool:
        """Whether the model runs within the budget."""
        return self.smallest_budget <= self.budget

    @property
    def streams(self) -> bool:
        """Whether weights are read from disk for every token."""
        return self.streamed_bytes > 0

    def tok_s_at(self, disk_rate: float, memory_rate: float) -> float:
        """Tokens per second to expect of a disk and a memory that give so many bytes per second.

        Reading and computing go on side by side: the slower of the two decides.
        """
        return 1 / max(self._disk_s(disk_rate), self._compute_s(memory_rate))

    def _disk_s(self, rate: float) -> float:
        return self.streamed_bytes / rate if self.streams else 0.0

    def _compute_s(self, rate: float) -> float:
        whole = self.used_bytes - self.bitmap_bytes
        return whole / (MEMORY_SHARE * rate) + self.bitmap_bytes / (BITMAP_SHARE * rate)

    def with_speed(self, speed: ReadSpeed, threads: int) -> Plan:
        """The plan with tok_s, or with a warning if the disk's part of it was not measured.

        New neurons are read in single units, and hide behind computing those that are there: the
        most tokens a second if all of that time does, the least if none does.
        """
        sparse, disk, new = self.sparse, 0.0, 0
        if sparse:
            sparse = dataclasses.replace(sparse, gap_bytes=read_gap(speed.disk))
            if sparse.new_bytes is None:
                return dataclasses.replace(self, sparse=sparse).with_warning(
                    "no speed, because it is not known how many neurons fire; `flashllm calibrate` "
                    "finds out"
                )
            new = sparse.new_bytes
        if self.streams:
            if speed.disk is None or "direct" not in speed.disk.modes:
                return self.with_warning("no speed, because the disk could not be measured")
            disk = (self.streamed_bytes - new) / speed.disk.rate(self.slot_bytes, READS_AT_ONCE)
            if sparse and new:
                disk += new / speed.disk.rate(sparse.unit_bytes, READERS)
        compute = self._compute_s(speed.memory_rate(threads))
        least = 1 / (disk * DISK_SPREAD + compute * MEMORY_SPREAD)
        most = 1 / max(disk / DISK_SPREAD, compute / MEMORY_SPREAD)
        return dataclasses.replace(self, sparse=sparse, tok_s=(least, most))

    def with_warning(self, text: str) -> Plan:
        """The plan with one more warning."""
        return dataclasses.replace(self, warnings=(*self.warnings, text))

    @property
    def verdict(self) -> str:
        """Whether it fits and how fast it runs, in one sentence; what to do if it does not fit."""
        if not self.fits:
            return self._refusal
        speed = f": {_range(*self.tok_s)}" if self.tok_s else ""
        runs = f"runs sparse ({self.sparse.mode})" if self.sparse else "runs"
        if self.streams:
            streamed = format_size(self.streamed_bytes)
            total = format_size(self.total_bytes)
            return f"{runs} in {total}, streaming {streamed} per token from disk{speed}"
        needed = f"needs {format_size(self.total_bytes)} of the {format_size(self.budget)} allowed"
        beside = f" and {runs}" if self.sparse else ""
        return f"fits in memory{beside}, {needed}{speed}"

    @property
    def _refusal(self) -> str:
        need = (
            f"needs at least {format_size(self.smallest_budget)} of the "
            f"{format_size(self.budget)} allowed"
        )
        parts = (
            f"{format_size(self.resident_bytes)} for weights, {format_size(self.kv_bytes)} KV "
            f"cache, {format_size(self.scratch_bytes)} buffers, "
            f"{format_size(self.overhead_bytes)} flashllm itself"
        )
        advice = "more memory or a smaller model would help"
        if self.largest_context:
            advice = f"a context of {self.largest_context} tokens would fit (-c)"
        return f"does not fit: {need} ({parts}); {advice}"

    @property
    def summary(self) -> str:
        """What the model is and whether it fits, in one sentence."""
        weights = f"{format_size(self.weight_bytes)} of {'/'.join(self.dtypes)} weights"
        return f"{self.name} ({self.family} family, {weights}) {self.verdict}"


def plan(
    name: str,
    needs: Needs,
    sizes: Sizes,
    dtypes: tuple[str, ...],
    *,
    budget: int,
    n_ctx: int,
    firing: Firing | None = None,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """The plan of a model that needs this and has these sizes, within `budget` bytes in all.

    firing: how it runs sparse, if it does.
    """
    kv = kv_bytes(needs.config, n_ctx, needs.kv_dtype)
    scratch = scratch_bytes(needs.config, needs.neurons, n_ctx) + needs.extra
    least = needs.least_room
    residency = pinned_scan(needs.scan, max(least, weights_room(budget, kv, scratch)))
    sparse = sparse_plan(firing, residency) if firing else None
    unused = sparse.ffn_bytes - sparse.compute_bytes if sparse else 0
    new = sparse.new_bytes or 0 if sparse else 0
    return Plan(
        name=name,
        family=needs.config.family,
        dtypes=dtypes,
        budget=budget,
        n_ctx=n_ctx,
        weight_bytes=sizes.weights,
        stored_bytes=sizes.stored,
        disk_bytes=sizes.fetched + sizes.to_store,
        pinned_bytes=residency.pinned_bytes,
        ring_bytes=residency.passing_bytes,
        kv_dtype=needs.kv_dtype,
        kv_bytes=kv,
        scratch_bytes=scratch,
        overhead_bytes=budget_for(residency.nbytes, 0, 0) - residency.nbytes,
        used_bytes=sum(span.nbytes for span in needs.scan.spans) - unused,
        bitmap_bytes=sizes.bitmaps,
        streamed_bytes=residency.streamed_bytes + _looked_up(residency) + new,
        slot_bytes=residency.slot_bytes or needs.scan.tables[0].largest,
        smallest_budget=needs.least_budget(n_ctx),
        largest_context=needs.largest_context(budget, n_ctx),
        sparse=sparse,
        warnings=warnings,
    )


def bytes_allowed(mem_budget: int | str, weights: int) -> int:
    """The bytes that a budget means for a model of `weights` bytes. Raises InvalidInput."""
    if isinstance(mem_budget, str):
        return parse_size(mem_budget).resolve(weights)
    return mem_budget


def _looked_up(residency: Residency) -> int:
    """Bytes read to look a token's row up, on average: a unit, unless it is one of those that stay.

    Rows of positions are used one after another, so that a unit of them serves many tokens.
    """
    if not residency.table_slots:
        return 0
    table = residency.scan.tables[0]
    kept = sum(span.bytes_of(0, n) for span, n in residency.kept() if span.group == table.group)
    return (table.nbytes - kept) // table.units


def _range(least: float, most: float) -> str:
    """A range of speeds, with as many digits as it deserves."""
    digits = ".2g" if most < 10 else ".0f"
    return f"about {least:{digits}} to {most:{digits}} tok/s"
