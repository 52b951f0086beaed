"""Units of a table of rows, brought in as rows are looked up; those used last are kept."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.arena import Arena
from flashllm.errors import EngineError
from flashllm.flash.format import Group
from flashllm.flash.reader import UnitReader


class RowUnits:
    """Units of one group for look-ups. table: the address of every unit that is there, else 0.

    Some may be pinned by others, who write their addresses into `table`. read_bytes: what was read
    so far, padding included.
    """

    def __init__(self, group: Group):
        self.table: NDArray[np.int64] = np.zeros(group.units, np.int64)
        self.read_bytes = 0
        self._group = group
        self._sizes = np.diff(group.offsets)
        self._arena = Arena(0, int(self._sizes.max()))
        # unit: slot, the one used last at the end
        self._slots: OrderedDict[int, int] = OrderedDict()

    def reset(self, slots: int) -> None:
        """Forget every unit, and have room for `slots`."""
        self.table[:] = 0
        self._slots.clear()
        self._arena.close()
        self._arena = Arena(slots, self._arena.slot_bytes)

    def bring(self, units: NDArray[np.int64], reader: UnitReader) -> None:
        """Make sure that `units` (int64, none twice) are in memory until the next call.

        Raises EngineError for more units than slots, CorruptModel, ModelIOError.
        """
        missing = units[self.table[units] == 0].tolist()
        for unit in units.tolist():
            if unit in self._slots:
                self._slots.move_to_end(unit)
        if not missing:
            return
        while self._arena.free < len(missing):
            if not self._slots or next(iter(self._slots)) in units:
                raise EngineError(f"{len(units)} units are looked up at once in {self._group.name}")
            self._evict()
        taken = {unit: self._arena.take() for unit in missing}
        try:
            outs = [self._arena.view(slot, self._arena.slot_bytes) for slot in taken.values()]
            reader.read_units(self._group, missing, outs)
        except BaseException:
            for slot in taken.values():
                self._arena.give(slot)
            raise
        for unit, slot in taken.items():
            self._slots[unit] = slot
            self.table[unit] = self._arena.address(slot)
            self.read_bytes += int(self._sizes[unit])

    def pin(self, first: int, addresses: NDArray[np.int64]) -> None:
        """Say that units from `first` on are in memory elsewhere, until the next reset."""
        self.table[first : first + len(addresses)] = addresses

    def check_integrity(self) -> None:
        """Raise EngineError unless slots and table agree."""
        self._arena.check_integrity(set(self._slots.values()))
        for unit, slot in self._slots.items():
            if self.table[unit] != self._arena.address(slot):
                raise EngineError(f"unit {unit} of {self._group.name} is not where the table says")

    def close(self) -> None:
        """Give the memory back."""
        self._slots.clear()
        self._arena.close()

    def _evict(self) -> None:
        unit, slot = self._slots.popitem(last=False)
        self.table[unit] = 0
        self._arena.give(slot)
