"""Bookkeeping of a sparse step in native code: which neurons fire, and which slots they have.

A layer has a few thousand neurons to look up, so that calls of NumPy, of code that the layer before
has driven out of the cache, take longer than what they do; and where an array has more than 500
elements, each gives the GIL back, which other threads then have. On OPT-6.7B's shape it was 40 ms a
token with NumPy's, 24 with these.
"""

from __future__ import annotations

from flashllm.kernels import jit


@jit.brief("(float32[::1], float32, int64[::1])")
def above(scores, threshold, ids):
    """The places of float32 scores [n] above it, ascending, to ids, int64 [n]: how many."""
    count = 0
    for i in range(len(scores)):
        ids[count] = i
        count += scores[i] > threshold
    return count


@jit.brief("(float32[::1], int64[::1])")
def mean_at(values, ids):
    """The mean of float32 values[ids], 0 of none."""
    total = 0.0
    for i in range(len(ids)):
        total += values[ids[i]]
    return total / max(1, len(ids))


@jit.brief("(int64[::1], int64[::1])")
def in_common(units, others):
    """How many `units` are among `others`; both ascending, none twice."""
    found = j = 0
    for i in range(len(units)):
        while j < len(others) and others[j] < units[i]:
            j += 1
        found += j < len(others) and others[j] == units[i]
    return found


@jit.brief("(int64[::1], intp)")
def are_ascending(units, end):
    """Whether they are from 0 to end - 1, each more than the one before."""
    before = -1
    for unit in units:
        if unit <= before:
            return False
        before = unit
    return before < end


@jit.brief("(int64[::1], intp, intp, int64[::1])")
def places(slots, size, start, out):
    """out = start + size * slots."""
    for i in range(len(slots)):
        out[i] = start + size * slots[i]


@jit.brief("(int32[::1], int32[::1], int64[::1], intp, int64[::1])")
def mark(slot, stamp, ids, now, slots):
    """Stamp units `ids` with `now`; their slots, -1 of none, to `slots`: how many have none."""
    absent = 0
    for i in range(len(ids)):
        found = slot[ids[i]]
        slots[i] = found
        absent += found < 0
        stamp[ids[i]] = now
    return absent


@jit.brief("(int32[::1], int64[::1], int64[::1], int32[::1], intp, int64[::1])")
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


@jit.brief("(int32[::1], int32[::1], int64[::1], intp, intp, intp, int32[::1], intp)")
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


@jit.brief("(int64[::1], int64[::1], int64[::1])")
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


@jit.brief("(int64[::1], int64[::1], int64[::1])")
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


BOOKKEEPING = (
    above, mean_at, in_common, are_ascending, places, mark, fill, let_go, clear_common, split
)  # fmt: skip
"""All functions of this module, to be compiled before they are used."""
