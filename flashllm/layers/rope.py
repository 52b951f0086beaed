"""Rotary positions: tables of cosines and sines, computed as far as they are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashllm.kernels.program import Integers, Program
from flashllm.kernels.weights import Floats

_STEP = 256
"""Positions computed at a time: always the same groups, so always the same bits."""


class RopeTable:
    """cos, sin float32 [positions, dims / 2], times `magnitude`; pair i turns by
    position * theta^(-2i / dims) / divisors[i].

    With long_after there are twice as many rows: the second half, by long_divisors, is for
    sequences made for more than long_after tokens. `rows` says which row each row of the step uses.

    Computed in float64: in float32 an angle at position 8000 is off by up to 5e-4.
    """

    def __init__(
        self,
        positions: int,
        capacity: int,
        *,
        theta: float,
        dims: int,
        style: str,
        divisors: Sequence[float] = (),
        magnitude: float = 1.0,
        long_after: int = 0,
        long_divisors: Sequence[float] = (),
    ):
        self.rows: Integers = np.zeros(capacity, np.int64)
        self._positions = positions
        self._style = style
        self._magnitude = magnitude
        self._long_after = long_after
        plain = theta ** (-np.arange(0, dims, 2, dtype=np.float64) / dims)
        kinds = [divisors, long_divisors] if long_after else [divisors]
        self._frequencies = [plain / (np.array(each) if each else 1.0) for each in kinds]
        self._ready = [0] * len(kinds)
        self.cos: Floats = np.empty((len(kinds) * positions, dims // 2), np.float32)
        self.sin: Floats = np.empty_like(self.cos)

    def prepare(self, positions: Integers, contexts: Integers) -> None:
        """Make a step ready: each row's position, and the tokens its sequence was made for."""
        long = (contexts > self._long_after) & (self._long_after > 0)
        for kind in range(len(self._frequencies)):
            there = positions[long == bool(kind)]
            if len(there):
                self._extend(kind, int(there.max()) + 1)
        self.rows[: len(positions)] = positions + self._positions * long

    def record(
        self, program: Program, x: Floats, heads: int, head_dim: int, *, parallel: bool = False
    ) -> None:
        """Rotate every head of x in place."""
        tables = (self.rows, self.cos, self.sin, self._style)
        program.rope(x, heads, head_dim, *tables, parallel=parallel)

    def _extend(self, kind: int, count: int) -> None:
        """Make the first `count` rows of a half valid."""
        while self._ready[kind] < min(count, self._positions):
            first = self._ready[kind]
            last = min(first + _STEP, self._positions)
            angles = np.arange(first, first + _STEP)[:, None] * self._frequencies[kind]
            here = slice(kind * self._positions + first, kind * self._positions + last)
            self.cos[here] = (np.cos(angles) * self._magnitude)[: last - first]
            self.sin[here] = (np.sin(angles) * self._magnitude)[: last - first]
            self._ready[kind] = last
