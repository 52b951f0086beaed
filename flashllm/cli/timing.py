"""A model timed on so many threads, prompt and reply, as llama-bench does; and that told."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flashllm import machine
from flashllm.cli.figures import percent
from flashllm.cli.report import Report
from flashllm.cli.trial import PeakMemory, Trial, prompt_tokens, run_trial
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.model.decoder import Decoder

_BUFFER = 1 << 30
"""To read memory with: larger than the last-level caches of ordinary machines."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """A model measured on so many threads, a trial for each repetition.

    In bytes: budget, of the whole process, None without a limit; resident, memory for weights;
    streamed, read for every step; peak_private, what was held at once. io: how weights were read,
    fallback: why not as asked.
    """

    threads: int
    kv_dtype: str
    io: str
    fallback: str | None
    load_s: float
    trials: list[Trial]
    budget: int | None
    weight_bytes: int
    resident_bytes: int
    streamed_bytes: int
    peak_rss: int
    peak_private: int


def measure(
    load: Callable[[], Decoder],
    threads: int,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    report: Report,
) -> Timing:
    """Load the model for `threads` threads and time it."""
    start = time.perf_counter()
    with PeakMemory() as peak:
        decoder = load()
        try:
            load_s = time.perf_counter() - start
            prompt = prompt_tokens(n_prompt, decoder.config.vocab_size)
            run_trial(decoder, prompt[:8], 1)  # touches every weight for the first time
            trials = []
            for done in range(repetitions):
                tell = functools.partial(tell_progress, report, done, repetitions)
                trials.append(run_trial(decoder, prompt, n_gen, tell))
        finally:
            decoder.close()
    return Timing(
        threads=threads,
        kv_dtype=decoder.kv_dtype,
        io=decoder.io,
        fallback=decoder.fallback,
        load_s=load_s,
        trials=trials,
        budget=decoder.budget,
        weight_bytes=decoder.weight_bytes,
        resident_bytes=decoder.resident_bytes,
        streamed_bytes=decoder.streamed_bytes,
        peak_rss=machine.peak_rss(),
        peak_private=peak.bytes,
    )


def tell_progress(report: Report, trial: int, trials: int, done: int, total: int) -> None:
    """How far one of several equal trials is."""
    report.progress(trial * total + done, trials * total)


def memory_rate(threads: int, budget: int | None) -> float:
    """Bytes per second that memory is read with, in what `budget` leaves for a buffer."""
    from flashllm.kernels import bandwidth

    room = machine.memory().usable
    if budget is not None:
        room = min(room, budget - machine.private_rss())
    return bandwidth.measure(threads, max(1 << 20, min(_BUFFER, room // 2))) * 1e9


def summarise(timing: Timing, n_prompt: int, n_gen: int, read_rate: float) -> dict[str, Any]:
    """Medians and ranges, as --json prints them: rates in tokens/s, bandwidth in bytes/s.

    ttft_s is the time from the prompt to the first token. bandwidth_share is weight bytes per token
    times decode rate, over the memory's read rate with as many threads. runs: of each repetition
    the time of the prompt and of every token in ms, and means of its tokens but the first few.
    """
    prefill = [trial.prefill_tok_s for trial in timing.trials]
    decode = [trial.decode_tok_s for trial in timing.trials]
    decode_tok_s = statistics.median(decode)
    return {
        "threads": timing.threads,
        "kv_dtype": timing.kv_dtype,
        "io": timing.io,
        "load_s": timing.load_s,
        "prefill_tok_s": statistics.median(prefill),
        "prefill_range": [min(prefill), max(prefill)],
        "ttft_s": statistics.median(trial.prompt.seconds for trial in timing.trials),
        "decode_tok_s": decode_tok_s,
        "decode_range": [min(decode), max(decode)],
        "weight_bytes": timing.weight_bytes,
        "bandwidth": read_rate,
        "bandwidth_share": timing.weight_bytes * decode_tok_s / read_rate,
        "mem_budget": timing.budget,
        "resident_bytes": timing.resident_bytes,
        "streamed_bytes": timing.streamed_bytes,
        "peak_rss": timing.peak_rss,
        "peak_private": timing.peak_private,
        "runs": [run_facts(trial) for trial in timing.trials],
    }


def run_facts(trial: Trial) -> dict[str, Any]:
    """A trial as --json prints it. In bytes and seconds for a token, where no unit is named."""
    return {
        "prompt_ms": 1e3 * trial.prompt.seconds,
        "prompt_read_bytes": trial.prompt.traffic.read_bytes,
        "token_ms": [1e3 * step.seconds for step in trial.steps],
        "read_bytes": trial.read_bytes,
        "hit_rate": trial.hit_rate,
        "wait_s": trial.wait_s,
        "compute_s": trial.compute_s,
        "written_bytes": trial.written_bytes,
        "active_share": trial.active_share,
        "new_bytes": trial.new_bytes,
        "manage_s": trial.manage_s,
    }


def describe(result: dict[str, Any]) -> str:
    """A result for human eyes."""
    lines = [
        f"{result['threads']} thread(s), keys and values in {result['kv_dtype']}",
        f"  prefill  {result['prefill_tok_s']:8.1f} tok/s  {between(result['prefill_range'])}, "
        f"first token after {result['ttft_s']:.2f} s",
        f"  decode   {result['decode_tok_s']:8.1f} tok/s  {between(result['decode_range'])}, "
        f"{100 * result['bandwidth_share']:.0f} % of the memory's "
        f"{result['bandwidth'] / 1e9:.1f} GB/s",
        f"  memory   {format_size(result['peak_rss'])} at most, weights "
        f"{format_size(result['weight_bytes'])}; loaded in {result['load_s']:.2f} s",
    ]
    if result["mem_budget"] is not None:
        run = result["runs"][-1]
        lines.append(
            f"  limit    {format_size(result['peak_private'])} private of "
            f"{format_size(result['mem_budget'])} allowed; a token reads "
            f"{format_size(run['read_bytes'])} (hit {100 * run['hit_rate']:.0f} %), waits "
            f"{run['wait_s']:.3g} s, computes {run['compute_s']:.3g} s"
        )
    run = result["runs"][-1]
    if run["active_share"] is not None:
        lines.append(
            f"  neurons  {percent(run['active_share'])} active; a token reads "
            f"{format_size(run['new_bytes'])} of new ones, manages them in "
            f"{1e3 * run['manage_s']:.2f} ms"
        )
    return "\n".join(lines)


def between(ends: list[float]) -> str:
    """The slowest and the fastest of the runs."""
    return f"[{ends[0]:.3g} to {ends[1]:.3g}]"
