"""A layer at run time: the programs of its stages, dense, or sparse for a few tokens."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from flashllm.kernels.program import Program
from flashllm.kernels.weights import Floats
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.head import Stages
from flashllm.layers.sparse_ffn import SparseFeedForward

Observer = Callable[[int, int, Floats, Floats], None]
"""Told (layer, first, x, hidden) of dense feed-forwards: what they read, float32 [rows, hidden
size], and what neurons from `first` on gave before down, float32 [rows, neurons]. Both change with
the next layer."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """A program that a stage is fetched for. neurons: of the feed-forward, which it computes."""

    stage: int
    program: Program
    neurons: range = range(0)


@dataclasses.dataclass(frozen=True)
class SparsePath:
    """How a few tokens pass a layer: attention, then the neurons that are expected to fire.

    foresee: says which neurons those may be before attention is computed, which then hides their
    reads; with the weights of attention's stage. Unless `is_sure`, it only guesses.
    """

    attention: Piece
    ffn: SparseFeedForward
    foresee: Program | None = None
    is_sure: bool = False


@dataclasses.dataclass(frozen=True)
class Layer:
    """Layer number `index`; sparse: how a few tokens pass it, if not as many do."""

    index: int
    pieces: Sequence[Piece]
    buffers: StepBuffers
    sparse: SparsePath | None = None

    def run(self, rows: int, stages: Stages, observer: Observer | None) -> None:
        """Pass `rows` rows of the residual stream. Raises what fetching a stage does."""
        for piece in self.pieces:
            with _fetched(piece, stages):
                piece.program.run(rows)
            if observer and piece.neurons:
                s, count = self.buffers, len(piece.neurons)
                x, hidden = s.ffn_in.values[:rows, : s.hidden], s.neurons.values[:rows, :count]
                observer(self.index, piece.neurons.start, x, hidden)

    def run_sparse(self, rows: int, stages: Stages) -> None:
        """The same, for at most SPARSE_ROWS rows, of neurons that are expected to fire alone."""
        path = self.sparse
        if path is None:
            self.run(rows, stages, None)
            return
        with _fetched(path.attention, stages):
            if path.foresee and (path.is_sure or path.ffn.may_read):
                path.foresee.run(rows)
                path.ffn.prefetch(rows)
            path.attention.program.run(rows)
        path.ffn.run(rows)


@contextlib.contextmanager
def _fetched(piece: Piece, stages: Stages) -> Iterator[None]:
    """Its stage is in memory meanwhile."""
    stages.fetch(piece.stage)
    try:
        yield
    finally:
        stages.release()
