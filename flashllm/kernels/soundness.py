"""Whether a unit of bitmaps may be given to a kernel: the numbers of flash/bitmaps.py, natively.

Every unit is held to them each time it is read. With NumPy that took so long that a pruned model of
7.7 GB streamed at three quarters of the disk's rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flashllm.kernels import jit
from flashllm.kernels.expanding import Panels, head_bytes
from flashllm.kernels.simd import load_int, popcount
from flashllm.kernels.weights import BITMAP_SCALE_BYTES

_BYTES = {"f16": 2, "bf16": 2, "q8": 1, "q4": 0}
"""Bytes of a weight that is not zero; 0: nibbles of two words go together."""


@jit.entry("(intp, intp, intp, intp, intp, intp, intp)")
def walk(unit, at, panels, tiles, end, scale_bytes, weight_bytes):
    """Where the values of `panels` panels end, whose heads begin `at` bytes after address `unit`,
    if those of the first begin at `end`; -1 if a head says something else. It reads heads alone.
    """
    for _ in range(panels):
        head = unit + at
        if load_int(head) != end - at:
            return -1
        end += tiles * scale_bytes
        for tile in range(tiles):
            words = head + 8 + 64 * tile
            for j in range(0, 32, 8):
                low, high = popcount(load_int(words + j)), popcount(load_int(words + j + 32))
                end += weight_bytes * (low + high) if weight_bytes else max(low, high)
        at += 8 + 64 * tiles
    return end


def is_sound(unit: NDArray[np.uint8], panels: Sequence[Panels]) -> bool:
    """As flash.bitmaps.is_sound. unit: uint8 [its length], contiguous."""
    at, end = 0, head_bytes(panels)
    if len(unit) < end:
        return False
    address = unit.ctypes.data
    for one in panels:
        sizes = (BITMAP_SCALE_BYTES[one.dtype], _BYTES[one.dtype])
        end = int(walk(address, at, one.panels, one.tiles, end, *sizes))
        if end < 0:
            return False
        at += head_bytes([one])
    return end == len(unit)
