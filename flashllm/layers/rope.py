"""Rotary position tables: cosines and sines of every position, computed as far as they are used."""

from __future__ import annotations

import numpy as np

from flashllm.kernels.weights import Floats

_STEP = 256
"""Positions computed at a time: always the same groups, so always the same bits."""


class RopeTable:
    """cos, sin float32 [positions, head_dim / 2]: angle = position * theta^(-2i / head_dim).

    Computed in float64: in float32 an angle at position 8000 is off by up to 5e-4.
    """

    def __init__(self, positions: int, head_dim: int, theta: float):
        self._frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        self.cos: Floats = np.empty((positions, head_dim // 2), np.float32)
        self.sin: Floats = np.empty((positions, head_dim // 2), np.float32)
        self._ready = 0

    def extend(self, positions: int) -> None:
        """Make rows 0 .. positions-1 valid."""
        while self._ready < min(positions, len(self.cos)):
            first, last = self._ready, min(self._ready + _STEP, len(self.cos))
            angles = np.arange(first, first + _STEP)[:, None] * self._frequencies
            self.cos[first:last] = np.cos(angles)[: last - first]
            self.sin[first:last] = np.sin(angles)[: last - first]
            self._ready = last
