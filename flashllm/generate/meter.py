"""Counting what a reply costs, from the call to its last token."""

from __future__ import annotations

import time

from flashllm import machine
from flashllm.generate.events import Stats


class Meter:
    """Clocks and counts one reply. started: time.perf_counter() when the caller asked for it."""

    def __init__(self, started: float, prompt_tokens: int, cached_tokens: int) -> None:
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._begun = time.perf_counter()
        self._first = self._last = 0.0
        self._generated = 0
        self._traffic = machine.disk_traffic()

    def count(self, token: int) -> None:
        """Another token was sampled."""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._generated += 1

    def stats(self, *, seed: int, context_tokens: int, n_ctx: int) -> Stats:
        """The figures so far."""
        now = machine.disk_traffic()
        before = self._traffic
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
            rss_bytes=machine.rss(),
            bytes_read=now.read - before.read if now and before else None,
            bytes_written=now.written - before.written if now and before else None,
            seed=seed,
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
