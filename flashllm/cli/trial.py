"""A trial: one prompt read and one reply written, with what each step of it took."""

from __future__ import annotations

import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from flashllm import machine

if TYPE_CHECKING:
    from flashllm.cache.units import Traffic
    from flashllm.layers.sparse_ffn import SparseCounts
    from flashllm.model.decoder import Decoder

DROPPED = 2
"""Tokens at the start of a reply that medians leave out: caches still fill."""

_SAMPLE_S = 0.02


@dataclasses.dataclass(frozen=True)
class Step:
    """How long a step took, in seconds, what it asked of the weights, and what it computed if it
    was sparse.
    """

    seconds: float
    traffic: Traffic
    sparse: SparseCounts | None = None


@dataclasses.dataclass(frozen=True)
class Trial:
    """The step that read the prompt, one step for each token written, and the tokens chosen.

    written_bytes: to disks meanwhile, by this process; None where the system does not count.
    """

    n_prompt: int
    prompt: Step
    steps: list[Step]
    tokens: list[int]
    written_bytes: int | None

    @property
    def prefill_tok_s(self) -> float:
        """Tokens of the prompt read in a second."""
        return self.n_prompt / self.prompt.seconds

    @property
    def decode_tok_s(self) -> float:
        """Tokens written in a second, all of them counted."""
        return len(self.steps) / sum(step.seconds for step in self.steps)

    @property
    def steady(self) -> list[Step]:
        """The steps that count where a few at the start do not."""
        return self.steps[DROPPED:] or self.steps

    @property
    def steady_tok_s(self) -> float:
        """Tokens a second at the median time of the steady steps."""
        return 1 / statistics.median(step.seconds for step in self.steady)

    @property
    def read_bytes(self) -> float:
        """Bytes of weights read for a token, on average of the steady steps."""
        return statistics.fmean(step.traffic.read_bytes for step in self.steady)

    @property
    def hit_rate(self) -> float:
        """The share of the bytes that the steady steps used which were in memory already."""
        used = sum(step.traffic.used_bytes for step in self.steady)
        read = sum(step.traffic.read_bytes for step in self.steady)
        return max(0.0, 1 - read / used) if used else 1.0

    @property
    def wait_s(self) -> float:
        """Seconds that a token waited for the disk, on average of the steady steps."""
        return statistics.fmean(step.traffic.wait_s for step in self.steady)

    @property
    def compute_s(self) -> float:
        """Seconds that a token took otherwise, on average of the steady steps."""
        return statistics.fmean(step.seconds - step.traffic.wait_s for step in self.steady)

    @property
    def active_share(self) -> float | None:
        """The share of the neurons that the steady steps computed; None if all."""
        counts = [step.sparse for step in self.steady if step.sparse]
        neurons = sum(count.neurons for count in counts)
        return sum(count.fired for count in counts) / neurons if neurons else None

    @property
    def new_bytes(self) -> float:
        """Bytes of neurons that were read for a token, on average of the steady steps."""
        return statistics.fmean(step.traffic.neuron_bytes for step in self.steady)

    @property
    def manage_s(self) -> float:
        """Seconds of computing that went into choosing neurons and looking them up, as above."""
        return statistics.fmean(step.sparse.manage_s if step.sparse else 0 for step in self.steady)


def prompt_tokens(n_prompt: int, vocab_size: int) -> list[int]:
    """A prompt of no meaning, the same each time."""
    return [(7 * i + 1) % vocab_size for i in range(n_prompt)]


def run_trial(
    decoder: Decoder,
    prompt: Sequence[int],
    n_gen: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Trial:
    """Read `prompt`, then write n_gen tokens, always the likeliest, from an empty KV cache.

    on_progress(done, total), in layers passed, a prompt counted as one token; it may raise to end
    the trial. Raises InvalidInput, ModelIOError, CorruptModel.
    """
    config = decoder.config
    total, written = config.n_layers * (n_gen + 1), machine.disk_traffic()
    sequence = decoder.new_sequence(len(prompt) + n_gen)
    chosen: list[int] = []
    steps: list[Step] = []

    def step(tokens: Sequence[int]) -> None:
        passed = config.n_layers * len(steps)
        counts, before, start = decoder.sparse_counts, decoder.traffic, time.perf_counter()
        logits = decoder.step(
            sequence,
            tokens,
            logits="last",
            on_layer=lambda done, _: on_progress(passed + done // len(tokens), total),
        )
        chosen.append(int(logits.argmax()))
        seconds, counted = time.perf_counter() - start, decoder.sparse_counts
        sparse = counted - counts if counted and counts else None
        steps.append(Step(seconds, decoder.traffic - before, sparse))

    try:
        step(prompt)
        for _ in range(n_gen):
            step(chosen[-1:])
    finally:
        sequence.close()
    now = machine.disk_traffic()
    return Trial(
        n_prompt=len(prompt),
        prompt=steps[0],
        steps=steps[1:],
        tokens=chosen,
        written_bytes=now.written - written.written if now and written else None,
    )


class PeakMemory:
    """The most private memory that this process holds at once within a `with`, in `bytes`.

    Looked at every 20 ms: what is taken and given back in between is not seen.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._end.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, machine.private_rss())
