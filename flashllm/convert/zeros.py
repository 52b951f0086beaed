"""How many weights of a checkpoint are zero, matrix by matrix: whether it is pruned."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from flashllm.convert.pipeline import Job, run_ordered
from flashllm.convert.weights import Weights
from flashllm.flash.quantize import ZERO_CODE, Quantized
from flashllm.model.roles import ATTENTION, FEED_FORWARD

JOB_WEIGHTS = 1 << 21
"""Weights counted at once, about."""

ROOM = 8
"""Results that may wait, each a number."""

Counted = tuple[str, int, int]
"""Of a role: weights read, and how many of them are not zero."""

OnProgress = Callable[[int, int], None]


def densities(weights: Weights, threads: int, on_progress: OnProgress) -> dict[str, float]:
    """The share of weights that are not zero, of every matrix of attention and feed-forward.

    All of them are read. on_progress is told weights read and in total, and may raise to stop.
    Raises CorruptModel, ModelIOError.
    """
    shapes = {
        role: shape
        for role, shape in weights.shapes.items()
        if role.rpartition(".")[2] in (*ATTENTION, *FEED_FORWARD)
    }
    total = sum(rows * cols for rows, cols in shapes.values())
    found: Counter[str] = Counter()
    done = 0
    with contextlib.closing(run_ordered(_jobs(weights, shapes), threads, ROOM)) as counts:
        for role, read, kept in counts:
            found[role] += kept
            done += read
            on_progress(done, total)
    return {role: found[role] / (rows * cols) for role, (rows, cols) in shapes.items()}


def _jobs(weights: Weights, shapes: dict[str, tuple[int, ...]]) -> Iterator[Job[Counted]]:
    for role, (rows, cols) in shapes.items():
        step = max(1, JOB_WEIGHTS // cols)
        for first in range(0, rows, step):
            count = min(step, rows - first)

            def run(role: str = role, first: int = first, count: int = count) -> Counted:
                matrix = weights.source_rows(role, first, count)
                return role, matrix.codes.size, _not_zero(matrix)

            yield Job(1, run)


def _not_zero(matrix: Quantized) -> int:
    """How many weights are not zero; with minimums, which no code makes zero, all."""
    if matrix.minimums is not None:
        return matrix.codes.size
    zero = 0 if matrix.scales is None else ZERO_CODE[matrix.dtype]
    return int(np.count_nonzero(matrix.codes != matrix.codes.dtype.type(zero)))
