"""What a conversion loses: the relative error of the weights, by role."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from flashllm.flash.quantize import Floats

Lost = tuple[float, float]
"""Sums of squared errors and of squares."""


def lost_between(before: Floats, after: Floats) -> Lost:
    """What was lost when weights that were `before` became `after`."""
    error = np.square(before - after, dtype=np.float64).sum()
    return float(error), float(np.square(before, dtype=np.float64).sum())


class Loss:
    """Sums by role ("ffn_up" of all layers together), added up in a fixed order."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def add(self, role: str, lost: Lost) -> None:
        """Count weights of `role` in."""
        sums = self._sums[role.rpartition(".")[2]]
        sums[0] += lost[0]
        sums[1] += lost[1]

    def to_json(self) -> dict[str, list[float]]:
        """The sums, for a journal: Python writes floats so that they are read back as they were."""
        return {role: list(sums) for role, sums in self._sums.items()}

    def add_json(self, data: Mapping[str, Any]) -> None:
        """Count in what to_json() gave."""
        for role, (error, power) in data.items():
            self.add(role, (float(error), float(power)))

    def report(self) -> dict[str, float] | None:
        """sqrt(sum of squared errors / sum of squares) by role; None if nothing was lost."""
        lossy = {role: (error, power) for role, (error, power) in self._sums.items() if error}
        if not lossy:
            return None
        return {role: round(math.sqrt(e / power), 6) for role, (e, power) in lossy.items()}
