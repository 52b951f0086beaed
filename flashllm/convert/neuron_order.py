"""An order of a layer's neurons in which those that fire together lie near each other.

As in Ripple (arXiv 2410.19274): pairs that fire together most are linked first, each neuron to two
others at most, without a cycle, so that links make paths; then paths are linked likewise, until
none fire together. Pairs are ranked by Jaccard's index, not by how often they fire together, by
which a neuron that always fires would be everyone's friend.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.quantize import Floats

Bits = NDArray[np.bool_]
Order = NDArray[np.int64]

FRIENDS = 16
"""Pairs that are considered for each neuron: those it fires together with most."""

BLOCK = 512
"""Neurons whose pairs are counted at once."""

ROUNDS = 12
"""Times that paths are linked to longer ones; each makes them two to four times fewer."""

READ_COST = 32 << 10
"""Bytes that a disk reads in the time that one more read costs it."""


def coactivation_order(fires: Bits, tick: Callable[[float], None] = lambda share: None) -> Order:
    """The order in which neurons should be stored: int64 [neurons], neuron order[j] at place j.

    fires: bool [tokens, neurons], from which it is made; the busiest paths come first. tick is told
    the share done, roughly.
    """
    columns = np.ascontiguousarray(fires.T)
    paths: list[list[int]] = [[neuron] for neuron in range(len(columns))]
    for turn in range(ROUNDS):
        means = np.stack([columns[path].mean(axis=0, dtype=np.float32) for path in paths])
        chains = _chains(_links(*_friends(means)), len(paths))
        if len(chains) == len(paths):
            break
        paths = [_joined([paths[i] for i in chain], columns) for chain in chains]
        tick((turn + 1) / ROUNDS)
    often = columns.mean(axis=1)
    paths.sort(key=lambda path: -often[path].mean())
    return np.array([neuron for path in paths for neuron in path], np.int64)


def _friends(means: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of rows of `means` [paths, tokens] that fire together, the closest first.

    How close is sum(a b) / (sum(a a) + sum(b b) - sum(a b)): of bits, Jaccard's index.
    """
    count = len(means)
    most = min(FRIENDS, count - 1)
    squares = np.square(means).sum(axis=1)
    found: list[tuple[NDArray[np.int64], NDArray[np.int64], Floats]] = []
    for first in range(0, count if most else 0, BLOCK):
        together = means[first : first + BLOCK] @ means.T
        rows = np.arange(len(together))
        apart = squares[first + rows, None] + squares - together
        close = np.divide(together, apart, out=np.zeros_like(together), where=apart > 0)
        close[rows, first + rows] = 0
        best = np.argpartition(close, -most, axis=1)[:, -most:]
        here = np.repeat(first + rows, most)
        found.append((here, best.reshape(-1), np.take_along_axis(close, best, 1).reshape(-1)))
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    one, other, close = (np.concatenate(parts) for parts in zip(*found, strict=True))
    keys, places = np.unique(
        np.minimum(one, other) * count + np.maximum(one, other), return_index=True
    )
    close = close[places]
    ranked = np.argsort(-close, kind="stable")
    ranked = ranked[close[ranked] > 0]
    return keys[ranked] // count, keys[ranked] % count


def _links(one: NDArray[np.int64], other: NDArray[np.int64]) -> dict[int, list[int]]:
    """The pairs linked, in their order: none has more than two links, and no path is a cycle."""
    links: dict[int, list[int]] = {}
    far_end: dict[int, int] = {}  # of a path, by either of its ends
    for a, b in zip(one.tolist(), other.tolist(), strict=True):
        if len(links.get(a, ())) == 2 or len(links.get(b, ())) == 2 or far_end.get(a) == b:
            continue
        links.setdefault(a, []).append(b)
        links.setdefault(b, []).append(a)
        start, end = far_end.get(a, a), far_end.get(b, b)
        far_end[start], far_end[end] = end, start
    return links


def _chains(links: dict[int, list[int]], count: int) -> list[list[int]]:
    """Every one of `count` things, once, along the links."""
    chains: list[list[int]] = []
    seen = np.zeros(count, np.bool_)
    for start in range(count):
        if seen[start] or len(links.get(start, ())) == 2:
            continue
        chain = [start]
        seen[start] = True
        while onward := [i for i in links.get(chain[-1], ()) if not seen[i]]:
            chain.append(onward[0])
            seen[onward[0]] = True
        chains.append(chain)
    return chains


def _joined(parts: list[list[int]], columns: Bits) -> list[int]:
    """Paths one after another, each turned so that it begins with what fires with the end before.

    columns: bool [neurons, tokens].
    """
    whole = list(parts[0])
    for part in parts[1:]:
        begins, ends = (columns[[part[0], part[-1]]] & columns[whole[-1]]).sum(axis=1)
        if len(whole) == len(parts[0]):  # the first may be turned as well
            before = (columns[[part[0], part[-1]]] & columns[whole[0]]).sum(axis=1)
            if before.max() > max(begins, ends):
                whole.reverse()
                begins, ends = before
        whole += part if begins >= ends else part[::-1]
    return whole


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a token reads of a layer, in the mean: units it needs, reads, and units read in vain.

    runs: reads if none are joined; joined: if those are that lie at most `gap` units apart.
    """

    units: float
    runs: float
    joined: float
    vain: float
    gap: int

    def nbytes(self, unit_bytes: int) -> float:
        """Bytes of a token's reads, once joined; a read itself counts as READ_COST bytes."""
        return (self.units + self.vain) * unit_bytes + self.joined * READ_COST


def reads(runs: Iterable[Bits], order: Order, per_unit: int, window: int, gap: int) -> Reads:
    """What runs of consecutive tokens, bool [tokens, neurons] each, read of neurons so ordered.

    A unit holds per_unit neurons; those that the `window` tokens before needed are there already.
    Tokens whose window is not full are not counted.
    """
    totals, tokens = np.zeros(4), 0
    for needed in runs:
        firsts = np.arange(0, len(order), per_unit)
        units = np.logical_or.reduceat(needed[:, order], firsts, axis=1)
        for token in range(min(window, len(units) - 1), len(units)):
            new = units[token] & ~units[max(0, token - window) : token].any(axis=0)
            holes = np.diff(np.flatnonzero(new)) - 1
            small = (holes > 0) & (holes <= gap)
            any_new = bool(new.any())
            totals += (
                new.sum(),
                any_new + (holes > 0).sum(),
                any_new + (holes > gap).sum(),
                holes[small].sum(),
            )
            tokens += 1
    units, single, joined, vain = (totals / max(1, tokens)).tolist()
    return Reads(units, single, joined, vain, gap)
