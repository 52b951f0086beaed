"""How far the neurons of a token are those of the tokens before it: what a window saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.sparsity import MAX_WINDOW

Bits = NDArray[np.bool_]
Shares = NDArray[np.float64]

_NEVER = -(1 << 30)


@dataclasses.dataclass(frozen=True, eq=False)
class WindowCurve:
    """For windows of k = 0 .. MAX_WINDOW tokens, as shares of a layer's neurons, in the mean.

    new[k]: needed by a token and by none of the k before it; resident[k]: needed by a token or one
    of the k before it. Both float64 [MAX_WINDOW + 1].
    """

    new: Shares
    resident: Shares


def window_curve(runs: Iterable[Bits]) -> WindowCurve:
    """The curve over runs of consecutive tokens: bool [tokens, neurons] each.

    The first MAX_WINDOW tokens of a run only fill the window; of a run that is no longer than
    twice that, the first half.
    """
    new, resident = np.zeros(MAX_WINDOW + 1), np.zeros(MAX_WINDOW + 1)
    counted = 0
    for needed in runs:
        tokens, neurons = needed.shape
        filled = min(MAX_WINDOW, tokens // 2)
        last = np.full(neurons, _NEVER, np.int64)
        for token, row in enumerate(needed):
            if token >= filled:
                # Window k has what was needed at most k tokens ago: what is further away is new.
                ago = np.minimum(token - last, MAX_WINDOW + 1)
                new += _at_least(ago[row], neurons)[1:]
            last[row] = token
            if token >= filled:
                counted += 1
                ago = np.minimum(token - last, MAX_WINDOW + 1)
                resident += 1 - _at_least(ago, neurons)[1:]
    return WindowCurve(new / max(1, counted), resident / max(1, counted))


def _at_least(ago: NDArray[np.int64], neurons: int) -> Shares:
    """The share of neurons that `ago` says k or more, for k = 0 .. MAX_WINDOW + 1."""
    counts = np.bincount(ago, minlength=MAX_WINDOW + 2)
    return counts[::-1].cumsum()[::-1] / neurons
