"""Which weights of a matrix may become zero, and what the others then should be.

A matrix is W [rows, cols], for inputs X [tokens, cols]; what a product gives is X W^T.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.flash.quantize import Floats

METHODS = ("magnitude", "wanda", "sparsegpt")

DAMPING = 0.01
"""Added to the diagonal of H, as a share of its mean, so that it can be inverted (SparseGPT)."""

BLOCK = 128
"""Columns that SparseGPT decides about together."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """How many weights become zero: a share of all, or `zeros` of each `group` side by side."""

    sparsity: float
    group: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidInput."""
        if not 0 < self.sparsity < 1:
            raise InvalidInput(f"a sparsity of {self.sparsity}: choose more than 0 and less than 1")
        if self.group is not None and self.sparsity * self.group != self.zeros:
            raise InvalidInput(f"{self.sparsity} of {self.group} weights is no whole number")

    @property
    def zeros(self) -> int:
        """Weights of a group that become zero."""
        return round(self.sparsity * (self.group or 0))

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "2:4": of each 4 weights side by side 2 stay. Raises InvalidInput."""
        kept, _, group = text.partition(":")
        if not (kept.isdecimal() and group.isdecimal() and 0 < int(kept) < int(group) <= 64):
            raise InvalidInput(f"{text!r} is no pattern like 2:4")
        return cls(1 - int(kept) / int(group), int(group))


class Inputs:
    """What pruning has to know of the inputs of a matrix, gathered from rows of them.

    norms: sums of squares of each column, float64 [cols]. hessian: X^T X, float32 [cols, cols], if
    it is wanted.
    """

    def __init__(self, cols: int, *, hessian: bool):
        self.rows = 0
        self.norms = np.zeros(cols, np.float64)
        self.hessian: Floats | None = np.zeros((cols, cols), np.float32) if hessian else None

    def add(self, x: Floats) -> None:
        """Some more inputs: float32 [rows, cols]."""
        self.rows += len(x)
        self.norms += np.square(x, dtype=np.float64).sum(axis=0)
        if self.hessian is not None:
            self.hessian += x.T @ x


def prune(method: str, weights: Floats, inputs: Inputs | None, pattern: Pattern) -> Floats:
    """`weights` float32 [rows, cols] pruned by one of METHODS: a new array.

    inputs: of the matrix; "magnitude" needs none. Raises InvalidInput where the pattern's groups do
    not divide the columns.
    """
    if pattern.group is not None and weights.shape[1] % pattern.group:
        raise InvalidInput(
            f"{weights.shape[1]} columns are no multiple of {pattern.group}; prune to a share"
        )
    if method == "magnitude" or inputs is None:
        return _masked(weights, _least(np.abs(weights), pattern, by_row=False))
    if method == "wanda":
        return _masked(weights, wanda_mask(weights, inputs, pattern))
    return sparsegpt(weights, inputs, pattern)


def wanda_mask(weights: Floats, inputs: Inputs, pattern: Pattern) -> NDArray[np.bool_]:
    """Weights that matter least for their row: by |w| times the norm of their column's inputs.

    Sun et al., A Simple and Effective Pruning Approach for Large Language Models
    (arXiv 2306.11695).
    """
    norms = np.sqrt(inputs.norms / max(1, inputs.rows)).astype(np.float32)
    return _least(np.abs(weights) * norms, pattern, by_row=True)


def sparsegpt(weights: Floats, inputs: Inputs, pattern: Pattern) -> Floats:
    """Column after column, weights become zero where that costs least, and those of the columns
    still to come make up for it.

    Frantar and Alistarh, SparseGPT (arXiv 2301.00774), algorithm 1: an error is w^2 / [H^-1]_jj,
    and the inverses of what is left of H are the rows of the Cholesky factor of H^-1. Columns whose
    inputs are all 0 become zero. Raises InvalidInput without a Hessian.
    """
    if inputs.hessian is None:
        raise InvalidInput("SparseGPT needs the products of its inputs")
    w = weights.astype(np.float32)
    dead = inputs.norms == 0
    w[:, dead] = 0
    factor = _inverse_factor(inputs.hessian, inputs.rows, dead)
    cols = w.shape[1]
    for first in range(0, cols, BLOCK):
        end = min(first + BLOCK, cols)
        block, u = w[:, first:end], factor[first:end, first:end]
        diagonal: Floats = np.diag(u).copy()
        if pattern.group is None:
            gone = _least(np.square(block / diagonal), pattern, by_row=False)
        else:
            gone = np.zeros(block.shape, np.bool_)
        errors = np.empty_like(block)
        for j in range(end - first):
            if pattern.group is not None and j % pattern.group == 0:
                span = slice(j, j + pattern.group)
                scores: Floats = np.square(block[:, span] / diagonal[span])
                gone[:, span] = _least(scores, pattern, by_row=True)
            kept = np.where(gone[:, j], np.float32(0), block[:, j])
            errors[:, j] = (block[:, j] - kept) / diagonal[j]
            block[:, j] = kept
            block[:, j + 1 :] -= errors[:, j, None] * u[j, j + 1 :]
        w[:, end:] -= errors @ factor[first:end, end:]
    return w


def _inverse_factor(hessian: Floats, rows: int, dead: NDArray[np.bool_]) -> Floats:
    """The upper Cholesky factor of the inverse of the damped mean of X^T X."""
    h = hessian.astype(np.float64)
    h *= 2 / max(1, rows)
    diagonal = np.einsum("ii->i", h)
    diagonal[dead] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = np.linalg.inv(h)
    lower = np.linalg.cholesky(inverse)
    return np.ascontiguousarray(lower.T.astype(np.float32))


def _least(scores: Floats, pattern: Pattern, *, by_row: bool) -> NDArray[np.bool_]:
    """Where the lowest scores are: of each group, of each row, or of all."""
    rows, cols = scores.shape
    if pattern.group is not None:
        groups = scores.reshape(rows, -1, pattern.group)
        return _lowest(groups, pattern.zeros).reshape(rows, cols)
    if by_row:
        return _lowest(scores, round(pattern.sparsity * cols))
    return _lowest(scores.reshape(-1), round(pattern.sparsity * scores.size)).reshape(rows, cols)


def _lowest(scores: Floats, count: int) -> NDArray[np.bool_]:
    """Where the `count` lowest of the last axis are."""
    found = np.zeros(scores.shape, np.bool_)
    if count:
        places = np.argpartition(scores, count - 1, axis=-1)[..., :count]
        np.put_along_axis(found, places, True, axis=-1)
    return found


def _masked(weights: Floats, gone: NDArray[np.bool_]) -> Floats:
    return np.where(gone, np.float32(0), weights)
