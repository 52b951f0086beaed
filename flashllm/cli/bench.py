"""flashllm bench: speed and memory of a model on this computer."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from flashllm import machine
from flashllm.cli.options import (
    check_size,
    io_option,
    json_option,
    kv_dtype_option,
    model_option,
    offline_option,
)
from flashllm.cli.report import Report
from flashllm.cli.trial import PeakMemory, Trial, prompt_tokens, run_trial
from flashllm.errors import InvalidInput
from flashllm.model.memory import KVDtype
from flashllm.model.options import IOMode, LoadOptions
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


def thread_counts(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """A click callback: "1,2" as numbers; nothing as one thread for each physical core."""
    counts = value.split(",") if value else [str(machine.cpu().usable_cores)]
    if not all(count.isdigit() and 1 <= int(count) <= 1024 for count in counts):
        raise click.BadParameter(f"{value!r} is not a list of thread counts such as 1,2")
    return [int(count) for count in counts]


def limit(ctx: click.Context, param: click.Parameter, value: str) -> str | None:
    """A click callback: a size or "auto" as it is, "none" as None."""
    return None if value == "none" else check_size(ctx, param, value)


@click.command("bench")
@model_option
@click.option(
    "--mem",
    callback=limit,
    default="none",
    metavar="SIZE|auto|none",
    help="Memory that the whole process may use, such as 6GB, 512MiB or 0.5x (of the model); what "
    "of the weights does not fit is read from disk for every token. [default: none, no limit]",
)
@click.option("-p", "--n-prompt", type=click.IntRange(1), default=512, help="[default: 512]")
@click.option("-n", "--n-gen", type=click.IntRange(1), default=128, help="[default: 128]")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=3, help="[default: 3]")
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(1, 1 << 24),
    metavar="N",
    help="Tokens of context to keep memory free for. [default: prompt and reply]",
)
@click.option(
    "-t",
    "--threads",
    callback=thread_counts,
    default="",
    metavar="N,N",
    help="Thread counts to measure. [default: one for each physical core]",
)
@kv_dtype_option
@io_option
@offline_option
@json_option
def command(
    model: str,
    mem: str | None,
    n_prompt: int,
    n_gen: int,
    repetitions: int,
    ctx_size: int | None,
    threads: list[int],
    kv_dtype: KVDtype | None,
    io: IOMode,
    offline: bool,
    as_json: bool,
) -> None:
    """Measure how fast a model reads a prompt (prefill) and writes (decode), and what it holds.

    Reads n-prompt tokens, then writes n-gen more, as llama-bench does, and takes the median. Also
    tells which share of this memory's read rate decoding reaches.
    """
    from flashllm.cli import opening
    from flashllm.model.loader import load_decoder

    with Report(quiet=as_json) as report:
        path = opening.locate(model, offline, report)
        opening.say_if_compiling("cpu", report)
        options = LoadOptions(mem, context(ctx_size, n_prompt, n_gen), None, "cpu", kv_dtype, io)
        timings = []
        for count in threads:
            report.message(f"measuring {path.name} with {count} thread(s)")
            load = functools.partial(
                load_decoder, path, dataclasses.replace(options, threads=count)
            )
            timings.append(measure(load, count, n_prompt, n_gen, repetitions, report))
        if timings[0].fallback:
            report.message(timings[0].fallback)
        # Last, because its large buffer would count in the peak memory.
        report.message("measuring the memory's read rate")
        read_rates = [memory_rate(timing.threads, timing.budget) for timing in timings]
    results = [
        summarise(timing, n_prompt, n_gen, rate)
        for timing, rate in zip(timings, read_rates, strict=True)
    ]
    if as_json:
        shape = {"n_prompt": n_prompt, "n_gen": n_gen, "repetitions": repetitions, "io": io}
        facts = {"model": path.name, "cpu": machine.cpu_name(), **shape, "results": results}
        click.echo(json.dumps(facts))
    else:
        click.echo(f"{path.name}: prompt {n_prompt}, reply {n_gen}, median of {repetitions}")
        click.echo("\n".join(describe(result) for result in results))


def context(asked: int | None, n_prompt: int, n_gen: int) -> int:
    """Tokens of context to have room for. Raises InvalidInput if prompt and reply need more."""
    if asked is not None and asked < n_prompt + n_gen:
        raise InvalidInput(f"-p {n_prompt} and -n {n_gen} do not fit -c {asked}")
    return asked or n_prompt + n_gen


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
    return "\n".join(lines)


def between(ends: list[float]) -> str:
    """The slowest and the fastest of the runs."""
    return f"[{ends[0]:.3g} to {ends[1]:.3g}]"
