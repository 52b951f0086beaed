"""The decoder: runs tokens of any sequences, at any positions, through all layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flashllm.cache.kv import Sequence
from flashllm.cache.pinned import Progress
from flashllm.cache.policy import SPARSE_ROWS
from flashllm.cache.units import Traffic, Units
from flashllm.errors import ContextFull, InvalidInput
from flashllm.kernels import Backend
from flashllm.kernels.weights import KV_NAMES, Floats
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.head import Embedding, Head
from flashllm.layers.layer import Layer, Observer
from flashllm.layers.rope import RopeTable
from flashllm.layers.sparse_ffn import SparseCounts
from flashllm.model.config import ModelConfig
from flashllm.model.fit import fit, least_budget
from flashllm.model.memory import KVDtype
from flashllm.model.scan import LayerStages

OnLayer = Callable[[int, int], None]


class Decoder:
    """A model in memory. One thread at a time may call it.

    A token's logits are bitwise the same whatever comes with it: how many tokens are in the step,
    how a prompt is cut into steps, how many threads there are, and which weights stay in memory.

    Unless it runs sparse: then a step of a few tokens computes the neurons that are expected to
    fire, longer ones all.

    config: its shape. budget: bytes that the whole process may use, None for no limit.
    scratch_bytes: memory of the buffers of a step.
    """

    def __init__(
        self,
        config: ModelConfig,
        backend: Backend,
        units: Units,
        buffers: StepBuffers,
        ropes: Seq[RopeTable],
        embedding: Embedding,
        layers: Seq[Layer],
        stages: Seq[LayerStages],
        head: Head,
        *,
        budget: int | None = None,
        scratch: int = 0,
        sparse: SparseCounts | None = None,
    ):
        self.config = config
        self.budget = budget
        self.scratch_bytes = scratch
        self._backend = backend
        self._units = units
        self._buffers = buffers
        self._ropes = ropes
        self._head = head
        self._embedding = embedding
        self._layers = layers
        self._sparse = sparse
        self._kept_rows = buffers.capacity
        self._observer: Observer | None = None
        whole = tuple(range(stages[-1].ffn[-1] + 1))
        few = tuple(layer.attention for layer in stages) if sparse else whole
        last = tuple(range(len(whole), len(units.residency.scan.stages)))
        self._orders = {
            (is_sparse, with_head): (few if is_sparse else whole) + (last if with_head else ())
            for is_sparse in (False, True)
            for with_head in (False, True)
        }

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights read for one token."""
        return self._units.weight_bytes

    @property
    def resident_bytes(self) -> int:
        """Memory for weights: those that stay, and room for those that pass through."""
        return self._units.residency.nbytes

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights read from flash for every step, 0 if all stay in memory."""
        return self._units.residency.streamed_bytes

    @property
    def traffic(self) -> Traffic:
        """What steps have asked of the weights so far."""
        return self._units.traffic

    @property
    def io(self) -> str:
        """How weights are read: "direct", "pread" or "mmap"."""
        return self._units.io

    @property
    def fallback(self) -> str | None:
        """Why weights are not read as asked, in a sentence, or None."""
        return self._units.fallback

    @property
    def kv_dtype(self) -> KVDtype:
        """What keys and values are kept in."""
        return KV_NAMES[self._buffers.kv.dtype.name]

    def new_sequence(self, n_ctx: int) -> Sequence:
        """An empty sequence of up to n_ctx tokens; the caller closes it.

        Raises InvalidInput if the model was not made for so many.
        """
        c = self.config
        if n_ctx > c.context_length:
            raise InvalidInput(
                f"a context of {n_ctx} tokens is more than the {c.context_length} this model "
                "was trained for; ask for less"
            )
        a = c.attention
        return Sequence(c.n_layers, a.kv_heads, a.head_dim, n_ctx, self._buffers.kv.dtype)

    def step(
        self,
        sequence: Sequence,
        tokens: ArrayLike,
        *,
        logits: Literal["last", "all", "none"] = "last",
        on_layer: OnLayer | None = None,
    ) -> Floats:
        """Append tokens to a sequence: logits float32 [1, all or 0 rows, vocabulary].

        on_layer(done, total), in layers times tokens, is called after each layer; if it raises, the
        sequence keeps what whole chunks had been appended. Raises ContextFull, InvalidInput.
        """
        ids = self._checked(tokens)
        if sequence.length + len(ids) > sequence.n_ctx:
            raise ContextFull(
                f"{len(ids)} tokens after {sequence.length} do not fit a context of "
                f"{sequence.n_ctx}; shorten the text or open a session with a larger one"
            )
        total = len(ids) * self.config.n_layers
        kept = []
        for first in range(0, len(ids), self._buffers.capacity):
            chunk = ids[first : first + self._buffers.capacity]
            positions = np.arange(sequence.length, sequence.length + len(chunk))
            done = first * self.config.n_layers
            is_last = first + len(chunk) == len(ids)
            wanted = logits == "all" or (logits == "last" and is_last)
            sequences = [sequence] * len(chunk)
            is_sparse = self._is_sparse(len(ids))
            self._units.expect(self._orders[is_sparse, wanted])
            self._forward(chunk, sequences, positions, is_sparse, on_layer, done, total)
            sequence.length += len(chunk)
            if wanted:
                rows = slice(0 if logits == "all" else len(chunk) - 1, len(chunk))
                kept.append(self._head.logits(self._buffers.x[rows]))
        empty = np.empty((0, self.config.vocab_size), np.float32)
        return np.concatenate(kept) if len(kept) > 1 else (kept or [empty])[0]

    def forward(self, tokens: ArrayLike, sequences: Seq[Sequence], positions: ArrayLike) -> Floats:
        """One step of up to `capacity` rows: row i is a token of sequences[i] at positions[i].

        A sequence's rows come in the order of their positions and continue it without a gap.
        Returns logits float32 [rows, vocabulary] and lengthens the sequences.
        Raises InvalidInput, ContextFull.
        """
        ids, at = self._checked(tokens), np.asarray(positions, np.int64)
        if not len(ids) == len(sequences) == len(at) <= self._buffers.capacity:
            raise InvalidInput(
                f"{len(ids)} tokens, {len(sequences)} sequences and {len(at)} positions; "
                f"a step takes as many of each, up to {self._buffers.capacity}"
            )
        lengths = {id(sequence): sequence.length for sequence in sequences}
        for sequence, position in zip(sequences, at, strict=True):
            if position != lengths[id(sequence)]:
                raise InvalidInput(
                    f"position {position} does not continue a sequence of {lengths[id(sequence)]}"
                )
            if position >= sequence.n_ctx:
                raise ContextFull(f"position {position} is outside a context of {sequence.n_ctx}")
            lengths[id(sequence)] += 1
        is_sparse = self._is_sparse(len(ids))
        self._units.expect(self._orders[is_sparse, True])
        self._forward(ids, sequences, at, is_sparse, None, 0, 0)
        for sequence in sequences:
            sequence.length = lengths[id(sequence)]
        return self._head.logits(self._buffers.x[: len(ids)])

    def keep_rows(self, rows: int) -> None:
        """Of the next step, if it is sparse, keep in memory what its first `rows` rows use alone,
        because the others will probably be taken back.
        """
        self._kept_rows = rows

    def fit(
        self,
        budget: int | None,
        *,
        kv: int,
        taken: int = 0,
        on_progress: Progress = lambda done, total: None,
    ) -> None:
        """Keep as many weights in memory as `budget` allows beside `kv` bytes of keys and values.

        taken: bytes that other models in this process hold. on_progress(bytes read, bytes in all).
        Raises OutOfBudget, and nothing has changed; CorruptModel, ModelIOError.
        """
        scan = self._units.residency.scan
        residency = fit(scan, budget, kv=kv, scratch=self.scratch_bytes, taken=taken)
        self._units.resize(residency, on_progress)
        self.budget = budget

    def least_budget(self, *, kv: int, taken: int = 0) -> int:
        """The least budget that `fit` does not refuse."""
        scan = self._units.residency.scan
        return least_budget(scan, kv=kv, scratch=self.scratch_bytes, taken=taken)

    @property
    def sparse_counts(self) -> SparseCounts | None:
        """What sparse steps did so far; None of a dense model."""
        return dataclasses.replace(self._sparse) if self._sparse else None

    def observe(self, observer: Observer | None) -> None:
        """Show `observer` what the feed-forwards of dense steps read and give, from now on."""
        self._observer = observer

    def _is_sparse(self, tokens: int) -> bool:
        """Whether a step of so many tokens computes only the neurons that fire."""
        return self._sparse is not None and tokens <= SPARSE_ROWS

    def close(self) -> None:
        """Stop the threads and give the weights' memory back."""
        self._backend.close()
        self._units.close()

    def _checked(self, tokens: ArrayLike) -> NDArray[np.int64]:
        """Token ids that kernels may index with."""
        ids = np.asarray(tokens, np.int64).reshape(-1)
        if len(ids) == 0:
            raise InvalidInput("a step needs at least one token")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise InvalidInput(
                f"token {ids.min() if ids.min() < 0 else ids.max()} is not in a vocabulary of "
                f"{self.config.vocab_size}; does the tokeniser belong to this model?"
            )
        return ids

    def _forward(
        self,
        ids: NDArray[np.int64],
        sequences: Seq[Sequence],
        positions: NDArray[np.int64],
        is_sparse: bool,
        on_layer: OnLayer | None,
        done: int,
        total: int,
    ) -> None:
        """All layers over checked rows; the result is the residual stream."""
        s, rows = self._buffers, len(ids)
        s.tokens[:rows] = ids
        s.positions[:rows] = positions
        s.kept_rows, self._kept_rows = self._kept_rows, s.capacity
        s.kv.table[:rows] = [sequence.addresses() for sequence in sequences]
        contexts = np.array([sequence.n_ctx for sequence in sequences])
        for rope in self._ropes:
            rope.prepare(positions, contexts)
        self._embedding.embed(s.tokens[:rows], s.positions[:rows], s.x)
        if self._sparse and is_sparse:
            self._units.begin_step(min(rows, s.kept_rows))
            self._sparse.tokens += rows
        for layer in self._layers:
            if is_sparse:
                layer.run_sparse(rows, self._units)
            else:
                layer.run(rows, self._units, self._observer)
            done += rows
            if on_layer:
                on_layer(done, total)
