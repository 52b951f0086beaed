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
    io_option,
    json_option,
    kv_dtype_option,
    model_option,
    offline_option,
)
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.model.memory import KVDtype
from flashllm.model.options import IOMode, LoadOptions
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.model.decoder import Decoder


@dataclasses.dataclass(frozen=True)
class Timing:
    """A model measured on so many threads: (prompt_s, reply_s) of each run."""

    threads: int
    kv_dtype: str
    load_s: float
    runs: list[tuple[float, float]]
    weight_bytes: int
    peak_rss: int


def thread_counts(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """A click callback: "1,2" as numbers; nothing as one thread for each physical core."""
    counts = value.split(",") if value else [str(machine.cpu().usable_cores)]
    if not all(count.isdigit() and 1 <= int(count) <= 1024 for count in counts):
        raise click.BadParameter(f"{value!r} is not a list of thread counts such as 1,2")
    return [int(count) for count in counts]


@click.command("bench")
@model_option
@click.option("-p", "--n-prompt", type=click.IntRange(1), default=512, help="[default: 512]")
@click.option("-n", "--n-gen", type=click.IntRange(1), default=128, help="[default: 128]")
@click.option("-r", "--repetitions", type=click.IntRange(1), default=3, help="[default: 3]")
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
    n_prompt: int,
    n_gen: int,
    repetitions: int,
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
    from flashllm.kernels import bandwidth
    from flashllm.model.loader import load_decoder

    with Report(quiet=as_json) as report:
        path = opening.locate(model, offline, report)
        opening.say_if_compiling("cpu", report)
        options = LoadOptions(None, None, None, "cpu", kv_dtype, io)
        timings = []
        for count in threads:
            report.message(f"measuring {path.name} with {count} thread(s)")
            load = functools.partial(
                load_decoder, path, dataclasses.replace(options, threads=count)
            )
            timings.append(measure(load, count, n_prompt, n_gen, repetitions, report))
        # Last, because its large buffer would count in the peak memory.
        report.message("measuring the memory's read rate")
        read_rates = [bandwidth.measure(count) * 1e9 for count in threads]
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
    decoder = load()
    try:
        load_s = time.perf_counter() - start
        if n_prompt + n_gen > decoder.config.context_length:
            raise InvalidInput(
                f"-p {n_prompt} and -n {n_gen} exceed this model's context of "
                f"{decoder.config.context_length} tokens; choose fewer"
            )
        once(decoder, min(n_prompt, 8), 2)  # touches every weight for the first time
        runs = []
        for done in range(repetitions):
            report.progress(done, repetitions)
            runs.append(once(decoder, n_prompt, n_gen))
        return Timing(
            threads, decoder.kv_dtype, load_s, runs, decoder.weight_bytes, machine.peak_rss()
        )
    finally:
        decoder.close()


def summarise(timing: Timing, n_prompt: int, n_gen: int, read_rate: float) -> dict[str, Any]:
    """Medians and ranges, as --json prints them: rates in tokens/s, bandwidth in bytes/s.

    ttft_s is the time from the prompt to the first token. bandwidth_share is weight bytes per token
    times decode rate, over the memory's read rate with as many threads.
    """
    prompt_s = [prompt for prompt, _ in timing.runs]
    prefill = [n_prompt / seconds for seconds in prompt_s]
    decode = [n_gen / reply for _, reply in timing.runs]
    decode_tok_s = statistics.median(decode)
    return {
        "threads": timing.threads,
        "kv_dtype": timing.kv_dtype,
        "load_s": timing.load_s,
        "prefill_tok_s": statistics.median(prefill),
        "prefill_range": [min(prefill), max(prefill)],
        "ttft_s": statistics.median(prompt_s),
        "decode_tok_s": decode_tok_s,
        "decode_range": [min(decode), max(decode)],
        "weight_bytes": timing.weight_bytes,
        "bandwidth": read_rate,
        "bandwidth_share": timing.weight_bytes * decode_tok_s / read_rate,
        "peak_rss": timing.peak_rss,
    }


def once(decoder: Decoder, n_prompt: int, n_gen: int) -> tuple[float, float]:
    """Seconds to read n_prompt tokens up to the first choice, and to write n_gen more."""
    tokens = [(7 * i + 1) % decoder.config.vocab_size for i in range(n_prompt)]
    sequence = decoder.new_sequence(n_prompt + n_gen)
    try:
        start = time.perf_counter()
        token = int(decoder.step(sequence, tokens, logits="last").argmax())
        read = time.perf_counter()
        for _ in range(n_gen):
            token = int(decoder.step(sequence, [token], logits="last").argmax())
        return read - start, time.perf_counter() - read
    finally:
        sequence.close()


def describe(result: dict[str, Any]) -> str:
    """A result for human eyes."""
    return "\n".join(
        [
            f"{result['threads']} thread(s), keys and values in {result['kv_dtype']}",
            f"  prefill  {result['prefill_tok_s']:8.1f} tok/s  {between(result['prefill_range'])}, "
            f"first token after {result['ttft_s']:.2f} s",
            f"  decode   {result['decode_tok_s']:8.1f} tok/s  {between(result['decode_range'])}, "
            f"{100 * result['bandwidth_share']:.0f} % of the memory's "
            f"{result['bandwidth'] / 1e9:.1f} GB/s",
            f"  memory   {format_size(result['peak_rss'])} at most, weights "
            f"{format_size(result['weight_bytes'])}; loaded in {result['load_s']:.2f} s",
        ]
    )


def between(ends: list[float]) -> str:
    """The slowest and the fastest of the runs."""
    return f"[{ends[0]:.0f} to {ends[1]:.0f}]"
