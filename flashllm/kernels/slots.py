"""Bookkeeping of a sparse step in native code: which neurons fire, and which slots they have.

A layer has a few thousand neurons to look up, so that calls of NumPy, of code that the layer before
has driven out of the cache, take longer than what they do; and where an array has more than 500
elements, each gives the GIL back, which other threads then have. On OPT-6.7B's shape it was 40 ms a
token with NumPy's, 24 with these.
"""

from __future__ import annotations

import numpy as np

from flashllm.kernels import jit


@jit.brief
def above(scores, threshold, ids):
    """The places of float32 scores [n] above it, ascending, to ids, int64 [n]: how many."""
    count = 0
    for i in range(len(scores)):
        ids[count] = i
        count += scores[i] > threshold
    return count


@jit.brief
def mean_at(values, ids):
    """The mean of float32 values[ids], 0 of none."""
    total = 0.0
    for i in range(len(ids)):
        total += values[ids[i]]
    return total / max(1, len(ids))


@jit.brief
def in_common(units, others):
    """How many `units` are among `others`; both ascending, none twice."""
    found = j = 0
    for i in range(len(units)):
        while j < len(others) and others[j] < units[i]:
            j += 1
        found += j < len(others) and others[j] == units[i]
    return found


@jit.brief
def are_ascending(units, end):
    """Whether they are from 0 to end - 1, each more than the one before."""
    before = -1
    for unit in units:
        if unit <= before:
            return False
        before = unit
    return before < end


@jit.brief
def places(slots, size, start, out):
    """out = start + size * slots."""
    for i in range(len(slots)):
        out[i] = start + size * slots[i]


@jit.brief
def mark(slot, stamp, ids, now, slots):
    """Stamp units `ids` with `now`; their slots, -1 of none, to `slots`: how many have none."""
    absent = 0
    for i in range(len(ids)):
        found = slot[ids[i]]
        slots[i] = found
        absent += found < 0
        stamp[ids[i]] = now
    return absent


@jit.brief
def fill(slot, ids, slots, free, frees, new):
    """Give the last of `frees` free slots to the `ids` that have none: how many remain.

    new: which of ids these are.
    """
    count = 0
    for i in range(len(ids)):
        if slots[i] < 0:
            frees -= 1
            slots[i] = slot[ids[i]] = free[frees]
            new[count] = i
            count += 1
    return frees


@jit.brief
def let_go(slot, stamp, ids, at, last_use, wanted, free, frees):
    """Take the slots of `wanted` units, from ids[at] on, whose stamp is `last_use`.

    Returns the place behind the last one looked at, and how many free slots there are.
    """
    end = len(ids)
    while at < end and wanted > 0:
        unit = ids[at]
        if stamp[unit] == last_use:
            free[frees] = slot[unit]
            frees += 1
            slot[unit] = -1
            stamp[unit] = 0
            wanted -= 1
        at += 1
    return at, frees


@jit.brief
def clear_common(units, others, values):
    """Set values[i] to 0 where units[i] is one of `others`; both ascending: how many there are."""
    found = j = 0
    for i in range(len(units)):
        while j < len(others) and others[j] < units[i]:
            j += 1
        if j < len(others) and others[j] == units[i]:
            values[i] = 0
            found += 1
    return found


@jit.brief
def split(addresses, near, far):
    """The places of addresses that are not 0, to `near`, and of those that are, to `far`.

    All int64 [n]. Returns how many are near.
    """
    count = 0
    for i in range(len(addresses)):
        near[count] = i
        far[i - count] = i
        count += addresses[i] != 0
    return count


class Bookkeeping:
    """All functions of this module, to be compiled before they are used: as a jit.Op is."""

    name = f"{__name__}:BOOKKEEPING"
    functions = (
        above, mean_at, in_common, are_ascending, places, mark, fill, let_go, clear_common, split
    )  # fmt: skip

    @property
    def is_compiled(self):
        """Whether native code of all of them is in the cache."""
        return len(list(jit.cache_directory().glob("slots.*.nbi"))) >= len(self.functions)

    @property
    def address(self):
        """0; asking for it calls each once, which compiles it."""
        ids, more, last = np.zeros((3, 1), np.int64)
        slot, stamp, free = np.zeros((3, 1), np.int32)
        scores = np.zeros(1, np.float32)
        above(scores, np.float32(0), ids)
        mean_at(scores, ids)
        in_common(ids, more)
        are_ascending(ids, 1)
        places(ids, 1, 0, more)
        mark(slot, stamp, ids, 1, more)
        fill(slot, ids, more, free, 1, last)
        let_go(slot, stamp, ids, 0, 1, 1, free, 0)
        clear_common(ids, more, last)
        split(ids, more, last)
        return 0


BOOKKEEPING = Bookkeeping()
