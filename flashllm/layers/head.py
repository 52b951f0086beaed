"""Both ends of the model: tokens to vectors, and vectors to logits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from flashllm.kernels.program import Integers, Program
from flashllm.kernels.weights import (
    QUANTIZED,
    TILE_ROWS,
    FineActivations,
    Floats,
    TileMatrix,
    padded,
)
from flashllm.layers.norm import Norm

LookUp = Callable[[Collection[int]], None]
"""Brings units of a table of rows into memory, until the next call."""


class Stages(Protocol):
    """Whoever brings stages of a model into memory."""

    def fetch(self, stage: int, /) -> None: ...
    def release(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class RowTable:
    """A matrix of which single rows are used, and who brings their units."""

    weight: TileMatrix
    look_up: LookUp

    def bring(self, rows: Integers) -> None:
        """Bring what holds `rows`."""
        units = rows // (TILE_ROWS * self.weight.panels_per_unit)
        self.look_up(list(set(units.tolist())))


class Embedding:
    """Rows of the token table times `scale`, plus rows of the table of positions, if any.

    A few rows at a time, because each may need a unit of its own.
    """

    def __init__(
        self, program: Program, tokens: RowTable, positions: RowTable | None, scale: float
    ):
        self.rows = program.capacity
        self._program = program
        self._tables = [tokens, *([positions] if positions else [])]
        self._indices: list[Integers] = [np.zeros(self.rows, np.int64) for _ in self._tables]
        self._out: Floats = np.zeros((self.rows, padded(tokens.weight.cols)), np.float32)
        program.embed(self._indices[0], tokens.weight, self._out, scale=scale)
        if positions:
            program.embed(self._indices[1], positions.weight, self._out, accumulate=True)

    def embed(self, tokens: Integers, positions: Integers, x: Floats) -> None:
        """x[t] = scale * row tokens[t] + row positions[t]; float32 [at least as many, stride]."""
        # In the order of the table, so that no unit is read twice for one prompt.
        order = np.argsort(tokens, kind="stable") if len(tokens) > self.rows else None
        for first in range(0, len(tokens), self.rows):
            part: slice | Integers = slice(first, min(first + self.rows, len(tokens)))
            if order is not None:
                part = order[part]
            count = len(tokens[part])
            for table, indices, ids in zip(
                self._tables, self._indices, (tokens, positions), strict=False
            ):
                indices[:count] = ids[part]
                table.bring(indices[:count])
            self._program.run(count)
            x[part] = self._out[:count]


class Head:
    """The last norm and the product with every token's vector, for a few rows at a time.

    The product is made in pieces, each of which is a stage of the model: its rows follow those of
    the piece before it.
    """

    def __init__(
        self,
        make_program: Callable[[], Program],
        norm: Norm,
        pieces: Sequence[TileMatrix],
        soft_cap: float | None,
        stages: Stages,
        first_stage: int,
    ):
        self._stages = stages
        self._first_stage = first_stage
        self._pieces: list[tuple[Program, Floats, int]] = []
        first = make_program()
        self.rows = first.capacity
        self._x: Floats = np.zeros((self.rows, padded(pieces[0].cols)), np.float32)
        normed = FineActivations(self.rows, pieces[0].cols)
        for i, weight in enumerate(pieces):
            program = make_program() if i else first
            logits: Floats = np.zeros((self.rows, padded(weight.rows)), np.float32)
            norm.record(program, self._x, normed.values)
            if weight.dtype in QUANTIZED:
                program.quantize(normed)
            program.matmul(normed, weight, logits)
            if soft_cap is not None:
                program.soft_cap(logits, weight.rows, soft_cap)
            self._pieces.append((program, logits, weight.rows))

    def logits(self, x: Floats) -> Floats:
        """Logits float32 [rows, vocabulary] of rows of the residual stream, in a new array.

        Raises what fetching a stage does.
        """
        result = np.empty((len(x), sum(rows for _, _, rows in self._pieces)), np.float32)
        begin = 0
        # Piece by piece, for all rows: each is fetched but once.
        for i, (program, logits, width) in enumerate(self._pieces):
            self._stages.fetch(self._first_stage + i)
            try:
                for first in range(0, len(x), self.rows):
                    count = min(self.rows, len(x) - first)
                    self._x[:count] = x[first : first + count]
                    program.run(count)
                    result[first : first + count, begin : begin + width] = logits[:count, :width]
            finally:
                self._stages.release()
            begin += width
        return result
