"""The door to the expanding kernels: units of bitmaps to units of tiles, on the calling thread.

The GIL is released meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.kernels.cpu import expanding
from flashllm.kernels.weights import BITMAP_SCALE_BYTES, TILE_BYTES, tile_panel_bytes

Bytes = NDArray[np.uint8]
Panels = tuple[str, int, int]
"""dtype, panels, tiles in each."""

OVERREAD = 64
"""Bytes past a unit's end that are read, though not used."""


def tile_bytes(panels: Sequence[Panels]) -> int:
    """Bytes of panels in codec `tile`."""
    return sum(count * tiles * TILE_BYTES[dtype] for dtype, count, tiles in panels)


def expand_unit(unit: Bytes, length: int, panels: Sequence[Panels], out: Bytes) -> None:
    """Write a unit of codec `bitmap`, verified, as it is in codec `tile`.

    unit: uint8, at least `length` and 64 bytes more. panels: what it holds, in its order. out:
    uint8 [tile_bytes(panels)], contiguous. Raises InvalidInput for buffers too short or a dtype
    without bitmaps.
    """
    heads = sum(
        count * tile_panel_bytes(dtype, tiles, bitmap=True) for dtype, count, tiles in panels
    )
    known = all(dtype in BITMAP_SCALE_BYTES for dtype, _, _ in panels)
    if not known or len(unit) < length + OVERREAD or length < heads or unit.dtype != np.uint8:
        raise InvalidInput(f"{len(unit)} bytes are no unit of {length} of bitmaps, and 64 more")
    if out.shape != (tile_bytes(panels),) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise InvalidInput(f"the tiles of a unit take {tile_bytes(panels)} bytes, not {out.shape}")
    at, to = unit.ctypes.data, out.ctypes.data
    for dtype, count, tiles in panels:
        expand: Any = getattr(expanding, f"expand_{dtype}")
        expand(at, count, tiles, to)
        at += count * tile_panel_bytes(dtype, tiles, bitmap=True)
        to += count * tiles * TILE_BYTES[dtype]
