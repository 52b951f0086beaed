"""Units in memory: every unit of a model, read once, verified, and pinned.

A later policy may keep fewer; the table of addresses is what layers see either way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.format import FlashModel, Group
from flashllm.flash.layout import ALIGNMENT
from flashllm.flash.reader import UnitReader
from flashllm.kernels.memory import huge_buffer

Progress = Callable[[int, int], None]

OVERREAD = 64
"""Bytes past a unit's end that kernels may read, though never use."""


class ResidentUnits:
    """All units of a model in anonymous memory, laid out as in their files."""

    def __init__(self, model: FlashModel, reader: UnitReader, on_progress: Progress | None = None):
        """Read and verify every unit; on_progress(bytes done, bytes in all) after each group.

        Raises CorruptModel for a unit that fails its checksum, ModelIOError.
        """
        sizes = {name: int(group.offsets[-1]) for name, group in model.groups.items()}
        self.weight_bytes = model.unit_bytes
        self.resident_bytes = sum(sizes.values())
        self._buffer = huge_buffer(self.resident_bytes + ALIGNMENT)
        self._tables: dict[str, NDArray[np.int64]] = {}
        done = 0
        for name, group in model.groups.items():
            slot = self._buffer[done : done + sizes[name] + OVERREAD]
            self._read(group, reader, slot)
            self._tables[name] = slot.ctypes.data + group.offsets[:-1].astype(np.int64)
            done += sizes[name]
            if on_progress:
                on_progress(done, self.resident_bytes)

    def table(self, group: str, first: int, count: int) -> NDArray[np.int64]:
        """Addresses of units first .. first+count-1 of a group: int64 [count]."""
        return np.ascontiguousarray(self._tables[group][first : first + count])

    def close(self) -> None:
        """Give the memory back: no program that points into it may run any more."""
        self._tables.clear()
        self._buffer = huge_buffer(0)

    @staticmethod
    def _read(group: Group, reader: UnitReader, slot: NDArray[np.uint8]) -> None:
        starts, lengths = group.offsets[:-1].tolist(), group.lengths.tolist()
        outs = [slot[at : at + size] for at, size in zip(starts, lengths, strict=True)]
        reader.read_units(group, range(group.units), outs)
