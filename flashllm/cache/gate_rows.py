"""The rows by which neurons are known to fire, kept in memory: of gates, or of up without gates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.policy import READ_BYTES
from flashllm.flash.format import Group
from flashllm.flash.parts import FFNPart
from flashllm.flash.reader import UnitReader
from flashllm.kernels.memory import OVERREAD, huge_buffer


class GateRows:
    """The first row of every neuron of a group of codec `row`.

    table int64 [neurons]: the address of each. load() fills them, once.
    """

    def __init__(self, group: Group, part: FFNPart, row_bytes: int):
        self._group = group
        self._part = part
        self._row_bytes = row_bytes
        self._buffer = huge_buffer(part.neurons * row_bytes + OVERREAD)
        self._loaded = False
        begin = int(self._buffer.ctypes.data)
        self.table: NDArray[np.int64] = begin + row_bytes * np.arange(part.neurons, dtype=np.int64)

    def load(self, reader: UnitReader) -> None:
        """Read all units, verify them, and keep the rows. Raises CorruptModel, ModelIOError."""
        if self._loaded:
            return
        group, part = self._group, self._part
        offsets = group.offsets
        step = max(1, READ_BYTES // int(np.diff(offsets).max()))
        rows = self._buffer[: part.neurons * self._row_bytes].reshape(part.neurons, -1)
        out = huge_buffer(int(np.diff(offsets).max()) * step)
        for first in range(0, group.units, step):
            count = min(step, group.units - first)
            reader.read_run(group, first, count, out)
            for unit in range(first, first + count):
                begin = unit * part.neurons_per_unit
                here = min(part.neurons_per_unit, part.neurons - begin)
                at = int(offsets[unit] - offsets[first])
                records = out[at : at + here * part.grain_bytes].reshape(here, part.grain_bytes)
                rows[begin : begin + here] = records[:, : self._row_bytes]
        self._loaded = True
