"""The door to the expanding kernels: units of bitmaps to units of tiles, on the calling thread.

The GIL is released meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.kernels.cpu import expanding
from flashllm.kernels.memory import OVERREAD
from flashllm.kernels.weights import BITMAP_SCALE_BYTES, TILE_BYTES, tile_panel_bytes

Bytes = NDArray[np.uint8]


class Panels(Protocol):
    """Panels of tiles, of one dtype, that follow one another in a unit."""

    @property
    def dtype(self) -> str: ...
    @property
    def panels(self) -> int: ...
    @property
    def tiles(self) -> int: ...


def tile_bytes(panels: Sequence[Panels]) -> int:
    """Bytes of panels in codec `tile`."""
    return sum(one.panels * one.tiles * TILE_BYTES[one.dtype] for one in panels)


def head_bytes(panels: Sequence[Panels]) -> int:
    """Bytes of what comes before values in a unit of codec `bitmap`."""
    return sum(one.panels * tile_panel_bytes(one.dtype, one.tiles, bitmap=True) for one in panels)


def expand_unit(unit: Bytes, length: int, panels: Sequence[Panels], out: Bytes) -> None:
    """Write a unit of codec `bitmap`, verified, as it is in codec `tile`.

    unit: uint8, at least `length` and 64 bytes more. panels: what it holds, in its order. out:
    uint8 [tile_bytes(panels)], contiguous. Raises InvalidInput for buffers too short or a dtype
    without bitmaps.
    """
    known = all(one.dtype in BITMAP_SCALE_BYTES for one in panels)
    fits = known and head_bytes(panels) <= length <= len(unit) - OVERREAD
    if not fits or unit.dtype != np.uint8:
        raise InvalidInput(f"{len(unit)} bytes are no unit of {length} of bitmaps, and 64 more")
    if out.shape != (tile_bytes(panels),) or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise InvalidInput(f"the tiles of a unit take {tile_bytes(panels)} bytes, not {out.shape}")
    at, to = unit.ctypes.data, out.ctypes.data
    for one in panels:
        expand: Any = getattr(expanding, f"expand_{one.dtype}")
        expand(at, one.panels, one.tiles, to)
        at += head_bytes([one])
        to += tile_bytes([one])
