"""Counting what a reply costs, from the call to its last token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from flashllm import machine
from flashllm.generate.events import Stats
from flashllm.generate.loop import Decoder, KVSequence, OnLayer
from flashllm.layers.sparse_ffn import SparseCounts


class Meter:
    """Clocks and counts one reply: its steps are made through it, its tokens told to it.

    started: time.perf_counter() when the caller asked for the reply.
    """

    def __init__(
        self, decoder: Decoder, started: float, prompt_tokens: int, cached_tokens: int
    ) -> None:
        self._decoder = decoder
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._begun = time.perf_counter()
        self._first = self._last = self._step_s = 0.0
        self._generated = 0
        self._disk = machine.disk_traffic()
        self._before = self._at_first = self._at_last = decoder.traffic
        self._sparse = decoder.sparse_counts or SparseCounts()

    def step(
        self,
        sequence: KVSequence,
        tokens: Sequence[int],
        /,
        *,
        logits: Literal["last", "all", "none"],
        on_layer: OnLayer | None = None,
    ) -> npt.NDArray[np.float32]:
        """The decoder's step, clocked. Raises what that raises."""
        start = time.perf_counter()
        try:
            return self._decoder.step(sequence, tokens, logits=logits, on_layer=on_layer)
        finally:
            self._step_s += time.perf_counter() - start

    def count(self, token: int) -> None:
        """Another token was sampled."""
        self._last = time.perf_counter()
        self._at_last = self._decoder.traffic
        if not self._generated:
            self._first, self._at_first = self._last, self._at_last
        self._generated += 1

    def stats(self, *, seed: int, context_tokens: int, n_ctx: int) -> Stats:
        """The figures so far."""
        disk, before = machine.disk_traffic(), self._disk
        weights = self._decoder.traffic - self._before
        later = self._at_last - self._at_first
        sparse = (self._decoder.sparse_counts or SparseCounts()) - self._sparse
        return Stats(
            ttft_s=self._first - self._started if self._generated else None,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated,
            prefill_tok_s=_rate(
                self._prompt_tokens - self._cached_tokens, self._first - self._begun
            ),
            decode_tok_s=_rate(self._generated - 1, self._last - self._first),
            context_tokens=context_tokens,
            n_ctx=n_ctx,
            seed=seed,
            weights_read_bytes=weights.read_bytes,
            weights_read_per_token=later.read_bytes / max(1, self._generated - 1),
            active_share=sparse.active_share,
            neurons_read_per_token=later.neuron_bytes / max(1, self._generated - 1),
            manage_s=sparse.manage_s,
            hit_rate=weights.hit_rate,
            wait_s=weights.wait_s,
            compute_s=max(0.0, self._step_s - weights.wait_s),
            rss_bytes=machine.rss(),
            private_bytes=machine.private_rss(),
            mem_budget=self._decoder.budget,
            bytes_read=disk.read - before.read if disk and before else None,
            bytes_written=disk.written - before.written if disk and before else None,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
