"""Units read from a flash model to be written to another: as they are, or neurons reordered."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from flashllm.flash.codecs import Bytes
from flashllm.flash.format import Group
from flashllm.flash.parts import FFNPart
from flashllm.flash.reader import UnitReader
from flashllm.kernels.memory import huge_buffer

READ_BYTES = 8 << 20
"""Read at once: one after another, such reads are as fast as most disks."""

GATHER_BYTES = 1 << 20
"""Records of neurons brought into their new order at once."""


def copied_units(group: Group, reader: UnitReader) -> Iterator[Bytes]:
    """The units of a group as they are, read and verified in order; each is valid until the next.

    Raises CorruptModel, ModelIOError.
    """
    runs = _runs(group)
    buffer = huge_buffer(max(_run_bytes(group, *run) for run in runs))
    lengths = group.lengths.tolist()
    for first, count in runs:
        reader.read_run(group, first, count, buffer)
        places = (group.offsets[first : first + count] - group.offsets[first]).tolist()
        for i, place in enumerate(places, first):
            yield buffer[place : place + lengths[i]]


def gathered_units(
    group: Group, part: FFNPart, order: NDArray[np.int64] | None, per_unit: int, reader: UnitReader
) -> Iterator[Bytes]:
    """The neurons of a group of codec row in another order, per_unit of them in each unit.

    part: all of the group. order: int64 [neurons], which neuron each place gets; None: its own. The
    whole group is in memory. Raises CorruptModel, ModelIOError.
    """
    buffer = huge_buffer(int(group.offsets[-1]))
    for first, count in _runs(group):
        reader.read_run(group, first, count, buffer[int(group.offsets[first]) :])
    neurons = np.arange(part.neurons) if order is None else order
    unit, within = np.divmod(neurons, part.neurons_per_unit)
    places = group.offsets[unit] + within * part.grain_bytes
    records = sliding_window_view(buffer, part.grain_bytes)
    step = per_unit * max(1, GATHER_BYTES // (per_unit * part.grain_bytes))
    for first in range(0, part.neurons, step):
        gathered = records[places[first : first + step]]
        for i in range(0, len(gathered), per_unit):
            yield gathered[i : i + per_unit].reshape(-1)


def _runs(group: Group) -> list[tuple[int, int]]:
    """All units of a group as reads of about READ_BYTES: first unit and count."""
    runs, first = [], 0
    while first < group.units:
        end = int(group.offsets[first]) + READ_BYTES
        count = max(1, int(np.searchsorted(group.offsets, end, "right")) - 1 - first)
        runs.append((first, count))
        first += count
    return runs


def _run_bytes(group: Group, first: int, count: int) -> int:
    return int(group.offsets[first + count] - group.offsets[first])
