"""The feed-forward of a few tokens: only neurons that are expected to fire are read and computed.

"LLM in a flash" (arXiv 2312.11514), section 3: a predictor says which neurons fire, those that are
not in memory are read while the others are computed.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.brought import Brought
from flashllm.cache.policy import SPARSE_ROWS
from flashllm.kernels.program import Integers, Program
from flashllm.kernels.slots import above, in_common, mean_at, split
from flashllm.kernels.weights import Activations, Floats, Nonlinearity, RowFFN
from flashllm.layers.buffers import StepBuffers

IN_VAIN = 0.05
"""Neurons to foresee in vain, as a share of those chosen: more waste reads, with fewer more are
left to be made after attention. See docs/measurements.md, Sparse."""

STEP = 0.05
"""By how much the threshold follows, as a share of the mean score of the neurons chosen."""

_NO_FLAGS = np.empty((1, 0), np.bool_)


class NeuronUnits(Protocol):
    """The units of a feed-forward, given in ascending order, in an array that changes later.

    they_pass: whether they may have to be read first. bring: they then remain for this step; keep
    says of each whether to count that it was used, None if all are to. prefetch: a guess at what
    `bring` will be asked for, before it.
    """

    @property
    def they_pass(self) -> bool: ...
    def prefetch(self, units: NDArray[np.int64]) -> None: ...
    def bring(self, units: NDArray[np.int64], keep: NDArray[np.bool_] | None) -> Brought: ...


@dataclasses.dataclass
class SparseCounts:
    """What sparse steps did so far.

    tokens: passed through all layers. fired: neurons computed, in all layers, and `neurons` of how
    many. manage_s: seconds spent on choosing neurons and looking them up.
    """

    tokens: int = 0
    fired: int = 0
    neurons: int = 0
    manage_s: float = 0.0

    def __sub__(self, before: SparseCounts) -> SparseCounts:
        return SparseCounts(
            self.tokens - before.tokens,
            self.fired - before.fired,
            self.neurons - before.neurons,
            self.manage_s - before.manage_s,
        )

    @property
    def active_share(self) -> float | None:
        """The share of the neurons that were computed; None if there was no sparse step."""
        return self.fired / self.neurons if self.neurons else None


class _Half:
    """Neurons that are computed by one run: where they are, their biases, and what they give."""

    def __init__(self, neurons: int, biased: bool, gated: bool):
        self.table: Integers = np.zeros(neurons, np.int64)
        self.count: Integers = np.zeros(1, np.int64)
        self.gate_bias = np.zeros(neurons, np.float32) if biased and gated else None
        self.up_bias = np.zeros(neurons, np.float32) if biased else None
        self.out = Activations(SPARSE_ROWS, neurons)


class SparseBuffers:
    """Memory that the sparse feed-forwards of all layers share; they have the same shape.

    scores float32 [SPARSE_ROWS, at least neurons]: above 0 for the neurons that are expected to
    fire. counts: what sparse steps did so far.
    """

    def __init__(
        self,
        make_program: Callable[[], Program],
        ffn: RowFFN,
        activation: Nonlinearity,
        biased: bool,
        step: StepBuffers,
        counts: SparseCounts,
    ):
        neurons = len(ffn.table)
        self.counts = counts
        self.step = step
        self.scores = Activations(SPARSE_ROWS, neurons)
        self.fired = Activations(SPARSE_ROWS, neurons)
        self.table: Integers = np.zeros(neurons, np.int64)
        self.count: Integers = np.zeros(1, np.int64)
        self.ids, self.foreseen, self.near, self.far = np.zeros((4, neurons), np.int64)
        self.halves = [_Half(neurons, biased, ffn.gated) for _ in range(2)]
        self.programs = []
        for half in self.halves:
            weights = dataclasses.replace(ffn, table=half.table, count=half.count)
            program = make_program()
            program.ffn_hidden(
                step.ffn_in,
                weights,
                activation,
                half.out,
                gate_bias=half.gate_bias,
                up_bias=half.up_bias,
            )
            self.programs.append(program)


class SparseFeedForward:
    """One layer's feed-forward over s.step.ffn_in, given the scores of its neurons."""

    def __init__(
        self,
        s: SparseBuffers,
        ffn: RowFFN,
        gate_bias: Floats | None,
        up_bias: Floats | None,
        record_down: Callable[[RowFFN, Activations], Program],
        units: NeuronUnits,
        neurons_per_unit: int,
        neuron_bytes: int,
    ):
        """record_down makes the program that adds what the neurons of a RowFFN give, from their
        activations.
        """
        self._s = s
        self._neurons = len(ffn.table)
        self._biases = (gate_bias, up_bias)
        self._down = record_down(dataclasses.replace(ffn, table=s.table, count=s.count), s.fired)
        self._units = units
        self._per_unit = neurons_per_unit
        self._neuron_bytes = neuron_bytes
        self._threshold = np.float32(0)
        self._guess: NDArray[np.int64] | None = None

    @property
    def may_read(self) -> bool:
        """Whether neurons may have to be read first, so that it is worth foreseeing them."""
        return self._units.they_pass

    def prefetch(self, rows: int) -> None:
        """Begin to read neurons, by scores of what is only close to what `run` will have."""
        start = time.perf_counter()
        guess = self._foreseen(rows)
        self._units.prefetch(self._units_of(guess)[0])
        self._guess = guess if rows == 1 else None
        self._s.counts.manage_s += time.perf_counter() - start

    def run(self, rows: int) -> None:
        """Add the result to the residual stream. Raises what bringing units does."""
        s, start = self._s, time.perf_counter()
        ids, fires = self._chosen(rows)
        self._learn(ids)
        units, unit_of, within = self._units_of(ids)
        brought = self._units.bring(units, self._kept(ids, unit_of, len(units), fires))
        found = brought.addresses[unit_of]
        addresses = found if self._per_unit == 1 else found + within
        count = split(found, s.near, s.far)
        near, far = s.near[:count], s.far[: len(found) - count]
        s.counts.manage_s += time.perf_counter() - start
        self._hidden(0, near, ids, addresses, fires, rows)
        if len(far):
            brought.wait()
            addresses = brought.addresses[unit_of] + within
            self._hidden(1, far, ids, addresses, fires, rows)
        s.table[: len(ids)] = addresses
        s.count[0] = len(ids)
        self._down.run(rows)
        s.counts.fired += len(ids) if rows == 1 else int(np.count_nonzero(fires))
        s.counts.neurons += rows * self._neurons

    def _chosen(self, rows: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The neurons that some row expects to fire, and of which row: bool [rows, neurons], or,
        of a single row, [1, 0].
        """
        scores = self._s.scores.values[:rows, : self._neurons]
        if rows == 1:
            ids = self._s.ids
            return ids[: above(scores[0], np.float32(0), ids)], _NO_FLAGS
        fires = scores > 0
        return np.flatnonzero(fires.any(axis=0)), fires

    def _foreseen(self, rows: int) -> NDArray[np.int64]:
        """The neurons that scores of what enters the layer are high enough for."""
        scores = self._s.scores.values[:rows, : self._neurons]
        if rows > 1:
            return np.flatnonzero((scores > self._threshold).any(axis=0))
        ids = self._s.foreseen
        return ids[: above(scores[0], self._threshold, ids)]

    def _learn(self, chosen: NDArray[np.int64]) -> None:
        """Have as many foreseen in vain as should be, by what became of the last guess."""
        if self._guess is not None:
            vain = len(self._guess) - in_common(self._guess, chosen)
            step = STEP * mean_at(self._s.scores.values[0], chosen)
            self._threshold += np.float32(step if vain > IN_VAIN * len(chosen) else -step)
            self._guess = None

    def _units_of(
        self, ids: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64] | slice, NDArray[np.int64] | int]:
        """The units that hold neurons, none twice; which of them each is in, and where in it."""
        if self._per_unit == 1:
            return ids, slice(None), 0
        unit, place = np.divmod(ids, self._per_unit)
        begins = np.ones(len(unit), np.bool_)
        np.not_equal(unit[1:], unit[:-1], out=begins[1:])
        return unit[begins], np.cumsum(begins) - 1, place * self._neuron_bytes

    def _kept(
        self,
        ids: NDArray[np.int64],
        unit_of: NDArray[np.int64] | slice,
        units: int,
        fires: NDArray[np.bool_],
    ) -> NDArray[np.bool_] | None:
        """Which units have neurons that fire for rows that are kept; None if all rows are."""
        rows = self._s.step.kept_rows
        if rows >= len(fires):
            return None
        first: NDArray[np.bool_] = np.logical_or.reduce(fires[:rows, ids], axis=0)
        if isinstance(unit_of, slice):
            return first
        kept = np.zeros(units, np.bool_)
        kept[unit_of[first]] = True
        return kept

    def _hidden(
        self,
        which: int,
        chosen: NDArray[np.int64],
        ids: NDArray[np.int64],
        addresses: NDArray[np.int64],
        fires: NDArray[np.bool_],
        rows: int,
    ) -> None:
        """What the chosen ones among `ids` give, put where they are in the order of ids."""
        s, half, count = self._s, self._s.halves[which], len(chosen)
        half.table[:count] = addresses[chosen]
        half.count[0] = count
        for live, bias in zip((half.gate_bias, half.up_bias), self._biases, strict=True):
            if live is not None and bias is not None:
                live[:count] = bias[ids[chosen]]
        s.programs[which].run(rows)
        given = half.out.values[:rows, :count]
        if rows > 1:  # a token's own neurons alone, so that it does not depend on the others
            given = given * fires[:, ids[chosen]]
        s.fired.values[:rows, chosen] = given
