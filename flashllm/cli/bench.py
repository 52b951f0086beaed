"""flashllm bench: speed and memory of a model on this computer."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import click

from flashllm import machine
from flashllm.cli.figures import how_sparse
from flashllm.cli.options import (
    check_size,
    io_option,
    json_option,
    kv_dtype_option,
    model_option,
    offline_option,
    sparse_option,
    window_option,
)
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.model.memory import KVDtype
from flashllm.model.options import IOMode, LoadOptions, Sparse


def thread_counts(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """A click callback: "1,2" as numbers; nothing as one thread for each physical core."""
    counts = value.split(",") if value else [str(machine.cpu().usable_cores)]
    if not all(count.isdigit() and 1 <= int(count) <= 1024 for count in counts):
        raise click.BadParameter(f"{value!r} is not a list of thread counts such as 1,2")
    return [int(count) for count in counts]


def limit(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A click callback: a size or "auto" as it is, "none" as None."""
    return None if value in (None, "none") else check_size(ctx, param, value)


def budget_list(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str]:
    """A click callback: "1.2x,0.5x" as a list of sizes, "inf" and "floor" among them."""
    asked = value.split(",") if value else []
    for text in asked:
        if text not in ("inf", "floor"):
            check_size(ctx, param, text)
    return asked


@click.command("bench")
@model_option
@click.option(
    "--mem",
    callback=limit,
    metavar="SIZE|auto|none",
    help="Memory that the whole process may use, such as 6GB, 512MiB or 0.5x (of the model); what "
    "of the weights does not fit is read from disk for every token. [default: none, no limit]",
)
@click.option(
    "--budgets",
    callback=budget_list,
    metavar="SIZE,SIZE",
    help="Compare budgets of memory, such as 1.2x,0.75x,0.5x,0.25x: a table and a plot of speed, "
    "reads and memory, beside what disk and cores allow. Also inf, no limit, and floor, the least.",
)
@click.option("-p", "--n-prompt", type=click.IntRange(1), default=512, help="[default: 512]")
@click.option("-n", "--n-gen", type=click.IntRange(1), default=128, help="[default: 128]")
@click.option("-r", "--repetitions", type=click.IntRange(1), help="[default: 3; with --budgets 1]")
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
@sparse_option
@window_option
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="With --budgets, draw the plot to a file too (needs the docs extra).",
)
@offline_option
@json_option
def command(
    model: str,
    mem: str | None,
    budgets: list[str],
    n_prompt: int,
    n_gen: int,
    repetitions: int | None,
    ctx_size: int | None,
    threads: list[int],
    kv_dtype: KVDtype | None,
    io: IOMode,
    sparse: Sparse | None,
    window: int | None,
    plot: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Measure how fast a model reads a prompt (prefill) and writes (decode), and what it holds.

    Reads n-prompt tokens, then writes n-gen more, as llama-bench does, and takes the median. Also
    tells which share of this memory's read rate decoding reaches.

    \b
      flashllm bench -m qwen3:8b --mem 4GB
      flashllm bench -m qwen3:8b --budgets 1.2x,0.75x,0.5x,0.25x
    """
    if budgets and (mem is not None or len(threads) > 1):
        raise InvalidInput("--budgets takes the place of --mem, and one count of threads (-t)")
    if plot is not None and not budgets:
        raise InvalidInput("--plot draws what --budgets measures; name some")
    if ctx_size is not None and ctx_size < n_prompt + n_gen:
        raise InvalidInput(f"-p {n_prompt} and -n {n_gen} do not fit -c {ctx_size}")
    options = LoadOptions(
        mem, ctx_size or n_prompt + n_gen, threads[0], "cpu", kv_dtype, io, sparse, window
    )
    shape = {"n_prompt": n_prompt, "n_gen": n_gen, "io": io, "sparse": sparse, "window": window}
    from flashllm.cli import opening

    with Report(quiet=as_json) as report:
        path = opening.locate(model, offline, report)
        opening.say_if_compiling("cpu", report)
        if budgets:
            shape["repetitions"] = repetitions or 1
            facts, told = compare(path, budgets, options, shape, plot, report)
        else:
            shape["repetitions"] = repetitions or 3
            facts, told = time_threads(path, threads, options, shape, report)
    facts = {"model": path.name, "cpu": machine.cpu_name(), **shape, **facts}
    click.echo(json.dumps(facts) if as_json else told)


def time_threads(
    path: Path, threads: list[int], options: LoadOptions, shape: dict[str, Any], report: Report
) -> tuple[dict[str, Any], str]:
    """Each count of threads measured: as --json prints it, and for human eyes."""
    from flashllm.cli import timing
    from flashllm.model.loader import load_decoder

    n_prompt, n_gen, repetitions = shape["n_prompt"], shape["n_gen"], shape["repetitions"]
    timings = []
    for count in threads:
        report.message(f"measuring {path.name} with {count} thread(s)")
        load = functools.partial(load_decoder, path, dataclasses.replace(options, threads=count))
        timings.append(timing.measure(load, count, n_prompt, n_gen, repetitions, report))
    if timings[0].fallback:
        report.message(timings[0].fallback)
    # Last, because its large buffer would count in the peak memory.
    report.message("measuring the memory's read rate")
    rates = [timing.memory_rate(each.threads, each.budget) for each in timings]
    pairs = zip(timings, rates, strict=True)
    results = [timing.summarise(each, n_prompt, n_gen, rate) for each, rate in pairs]
    lines = [f"{path.name}: prompt {n_prompt}, reply {n_gen}, median of {repetitions}"]
    if options.sparse:
        lines.append(how_sparse(options.sparse))
    return {"results": results}, "\n".join([*lines, *map(timing.describe, results)])


def compare(
    path: Path,
    budgets: list[str],
    options: LoadOptions,
    shape: dict[str, Any],
    plot: Path | None,
    report: Report,
) -> tuple[dict[str, Any], str]:
    """Each budget measured: as --json prints it, and for human eyes."""
    from flashllm.cli import budget_bench, budget_table, plots

    draw = plots.png_writer(plot) if plot is not None else None
    series = budget_bench.measure(path, budgets, options, shape, report)
    report.clear()
    bars = [plots.Bar(run.label, run.tok_s, run.bound_tok_s) for run in series.runs]
    if draw is not None:
        draw(f"{path.name}, {series.threads} thread(s)", bars)
    told = [*budget_table.describe(path.name, series, shape), "", *plots.bars(bars)]
    return budget_table.facts(series), "\n".join(told)
