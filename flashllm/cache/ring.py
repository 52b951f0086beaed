"""The ring: units that do not stay, read in the order of their use, ahead of it."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from flashllm.cache.arena import Arena
from flashllm.cache.policy import Extent, Residency
from flashllm.errors import EngineError
from flashllm.flash.format import FlashModel
from flashllm.flash.prefetch import Pending, Prefetcher

Place = Callable[[Extent, int], None]
"""Told the address at which an extent's units begin."""


@dataclasses.dataclass(frozen=True)
class _Read:
    """An extent on its way into a slot."""

    stage: int
    extent: Extent
    slot: int
    pending: Pending


class Ring:
    """Brings stages into slots, and frees them. Reads go on ahead as long as slots are free.

    Stages are expected in the order that `expect` was told last, over and over. One that comes out
    of order (a step was cancelled) only costs the reads made in vain.

    read_bytes: what was read for stages so far, in vain too.
    """

    def __init__(
        self,
        model: FlashModel,
        residency: Residency,
        prefetcher: Prefetcher,
        place: Place,
    ):
        self._model = model
        self._prefetcher = prefetcher
        self._place = place
        self._arena = Arena(residency.slots, residency.slot_bytes)
        self._extents = [residency.extents(stage) for stage in range(len(residency.scan.stages))]
        self._reads: deque[_Read] = deque()
        self._held: list[int] = []
        self._next: tuple[int, int] = (0, 0)  # stage, and which of its extents
        self._order: Sequence[int] = ()
        self._after: dict[int, int] = {}
        self.read_bytes = 0
        self.expect(range(len(self._extents)))

    def expect(self, order: Sequence[int]) -> None:
        """Say in which order stages will come from now on."""
        if order is not self._order:
            self._order = order
            self._after = dict(zip(order, [*order[1:], order[0]], strict=True))

    def fetch(self, stage: int) -> None:
        """Wait until all of a stage is in memory, where it remains until `release`.

        Raises CorruptModel, ModelIOError; then nothing is held, and any stage may follow.
        """
        if self._held:
            raise EngineError("a stage is fetched before the one in use is released")
        if not self._extents[stage]:  # all of it stays; what is read ahead is of a later one
            return
        if self._reads and self._reads[0].stage != stage:
            self.drop()
        if not self._reads:
            self._next = (stage, 0)
        try:
            for _ in self._extents[stage]:
                self._read_ahead()
                read = self._reads[0]
                read.pending.wait()
                self._reads.popleft()
                self._held.append(read.slot)
                self.read_bytes += read.extent.nbytes
                self._place(read.extent, self._arena.address(read.slot))
        except BaseException:
            self.drop()
            raise

    def release(self) -> None:
        """Free what `fetch` brought, and read on into it."""
        for slot in self._held:
            self._arena.give(slot)
        self._held.clear()
        self._read_ahead()

    def drop(self) -> None:
        """Give up all reads, and free every slot."""
        for read in self._reads:
            if read.pending.done:
                self.read_bytes += read.extent.nbytes
        while self._reads:  # the last first: waiting for one must not let the next begin
            read = self._reads.pop()
            read.pending.cancel()
            self._arena.give(read.slot)
        for slot in self._held:
            self._arena.give(slot)
        self._held.clear()

    def check_integrity(self) -> None:
        """Raise EngineError unless every slot is free, held, or being read into, exactly once."""
        self._arena.check_integrity({*self._held, *(read.slot for read in self._reads)})

    def close(self) -> None:
        """Give up all reads, and the memory back."""
        self.drop()
        self._arena.close()

    def _read_ahead(self) -> None:
        """Start reads, in order, while slots are free and a whole round is not under way."""
        passed = 0
        while self._arena.free and passed <= len(self._extents):
            stage, index = self._next
            if index == len(self._extents[stage]):
                self._next = (self._after.get(stage, self._order[0]), 0)
                if self._reads and self._next[0] == self._reads[0].stage:
                    return
                passed += 1
                continue
            passed = 0
            extent = self._extents[stage][index]
            slot = self._arena.take()
            pending = self._prefetcher.start(
                self._model.group(extent.group),
                extent.first,
                extent.count,
                self._arena.view(slot, extent.nbytes),
            )
            self._reads.append(_Read(stage, extent, slot, pending))
            self._next = (stage, index + 1)
