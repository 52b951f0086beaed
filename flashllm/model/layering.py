"""A block's programs, stage by stage: dense, and for sparse models the way of a few tokens."""

from __future__ import annotations

from collections.abc import Callable

from flashllm.cache.policy import SPARSE_ROWS, Scan
from flashllm.flash.parts import FFNPart
from flashllm.kernels.program import Program
from flashllm.kernels.weights import Activations, Floats, RowFFN
from flashllm.layers.block import Block
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.ffn import FeedForward
from flashllm.layers.firing import Firing
from flashllm.layers.layer import Layer, Piece, SparsePath
from flashllm.layers.sparse_ffn import (
    NeuronUnits,
    SparseBuffers,
    SparseCounts,
    SparseFeedForward,
)
from flashllm.model.scan import LayerStages

MakeProgram = Callable[[int], Program]
"""An empty program for so many rows."""


class Layering:
    """Makes the layers of a model from their blocks. counts: what sparse steps did so far."""

    def __init__(self, scan: Scan, make_program: MakeProgram, buffers: StepBuffers):
        self._scan = scan
        self._make_program = make_program
        self._buffers = buffers
        self.counts = SparseCounts()
        self._shared: dict[tuple[int, str, bool], SparseBuffers] = {}

    def layer(
        self,
        index: int,
        block: Block,
        stages: LayerStages,
        part: FFNPart,
        sparse: SparsePath | None = None,
    ) -> Layer:
        """A layer whose feed-forward is `part`, in these stages."""
        if stages.ffn == (stages.attention,):
            program = self._make_program(self._buffers.capacity)
            block.record(program, self._buffers)
            whole = Piece(stages.attention, program, range(part.neurons))
            return Layer(index, [whole], self._buffers, sparse)
        attention = self._make_program(self._buffers.capacity)
        block.record_attention(attention, self._buffers)
        pieces = [Piece(stages.attention, attention)]
        pieces += [self._piece(block, stage, part) for stage in stages.ffn]
        return Layer(index, pieces, self._buffers, sparse)

    def _piece(self, block: Block, stage: int, part: FFNPart) -> Piece:
        """The neurons of a stage."""
        span = self._scan.stages[stage][0]
        first = span.first * part.neurons_per_unit
        end = min(part.neurons, first + span.units * part.neurons_per_unit)
        program = self._make_program(self._buffers.capacity)
        record = block.ffn.part(first, end - first).record
        last = end == part.neurons
        block.record_ffn(program, self._buffers, record, first=first == 0, last=last)
        return Piece(stage, program, range(first, end))

    def sparse_path(
        self,
        block: Block,
        weights: RowFFN,
        stage: int,
        part: FFNPart,
        firing: Firing,
        units: NeuronUnits,
    ) -> SparsePath:
        """How a few tokens pass a layer whose neurons are `weights`, its attention in `stage`."""
        ffn, s = block.ffn, self._sparse_buffers(block.ffn, weights)

        def record_firing(program: Program) -> None:
            if ffn.reads_codes or firing.reads_codes:
                program.quantize(self._buffers.ffn_in)
            firing.record(program, self._buffers.ffn_in, s.scores)

        # A parallel block's feed-forward reads what its attention does. Elsewhere attention changes
        # that little: a predictor says nearly the same of what entered the layer, and is cheap.
        foresee = None
        if block.parallel or firing.is_cheap:
            foresee = self._make_program(SPARSE_ROWS)
            block.record_ffn_in(foresee, self._buffers)
            record_firing(foresee)
        attention = self._make_program(SPARSE_ROWS)
        block.record_attention(attention, self._buffers)
        if not block.parallel:
            record_firing(attention)
        elif ffn.reads_codes:
            attention.quantize(self._buffers.ffn_in)

        def record_down(chosen: RowFFN, hidden: Activations) -> Program:
            program = self._make_program(SPARSE_ROWS)

            def record(program: Program, s: StepBuffers, out: Floats, *, accumulate: bool) -> None:
                program.ffn_down(hidden, chosen, out, bias=ffn.down_bias, accumulate=accumulate)

            block.record_ffn(program, self._buffers, record)
            return program

        sparse = SparseFeedForward(
            s,
            weights,
            ffn.gate_bias,
            ffn.up_bias,
            record_down,
            units,
            part.neurons_per_unit,
            part.grain_bytes,
        )
        return SparsePath(Piece(stage, attention), sparse, foresee, is_sure=block.parallel)

    def _sparse_buffers(self, ffn: FeedForward, weights: RowFFN) -> SparseBuffers:
        """Those of all layers of this shape."""
        biased = ffn.up_bias is not None
        shape = (len(weights.table), weights.dtype, biased)
        if shape not in self._shared:
            self._shared[shape] = SparseBuffers(
                lambda: self._make_program(SPARSE_ROWS),
                weights,
                ffn.activation,
                biased,
                self._buffers,
                self.counts,
            )
        return self._shared[shape]
