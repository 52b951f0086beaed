"""Slots of equal size in one buffer, taken and given back in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import EngineError
from flashllm.kernels.memory import OVERREAD, huge_buffer


class Arena:
    """`slots` slots of `slot_bytes` bytes in anonymous memory, on page boundaries if those are
    whole pages.
    """

    def __init__(self, slots: int, slot_bytes: int):
        self.slot_bytes = slot_bytes
        self._slots = slots
        self._buffer = huge_buffer(slots * slot_bytes + OVERREAD)
        self._address = int(self._buffer.ctypes.data)
        # The lowest first: pages of slots that are never taken are never touched.
        self._free = list(range(slots - 1, -1, -1))

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return self._slots * self.slot_bytes

    @property
    def free(self) -> int:
        """How many slots can be taken."""
        return len(self._free)

    def take(self) -> int:
        """A slot that nobody has. Raises EngineError if there is none."""
        if not self._free:
            raise EngineError(f"all {self._slots} slots are taken")
        return self._free.pop()

    def give(self, slot: int) -> None:
        """Give a slot back."""
        self._free.append(slot)

    def view(self, slot: int, nbytes: int) -> NDArray[np.uint8]:
        """The first `nbytes` bytes of a slot: uint8, writable."""
        begin = slot * self.slot_bytes
        return self._buffer[begin : begin + nbytes]

    def address(self, slot: int) -> int:
        """Where a slot begins in memory."""
        return self._address + slot * self.slot_bytes

    def check_integrity(self, taken: set[int]) -> None:
        """Raise EngineError unless every slot is either free, once, or among those `taken`."""
        free = set(self._free)
        if len(free) != len(self._free) or free & taken or free | taken != set(range(self._slots)):
            raise EngineError(
                f"slots are lost or shared: {len(self._free)} free, {len(taken)} taken "
                f"of {self._slots}"
            )

    def close(self) -> None:
        """Give the memory back."""
        self._free.clear()
        self._slots = 0
        self._buffer = huge_buffer(0)
