"""flashllm calibrate: a ReLU-sparse model learns which of its neurons a token will need."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flashllm.cli.options import check_new, check_size, existing_file
from flashllm.cli.report import Report
from flashllm.hub import store

if TYPE_CHECKING:
    from flashllm.convert.calibration import Calibration

Order = Literal["coactivation", "none"]


def check_rank(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """A click callback: a number, or None for "auto"."""
    if value == "auto":
        return None
    if not (value.isascii() and value.isdigit()):
        raise click.BadParameter(f"{value!r} is neither a number nor auto")
    return int(value[:9])


@click.command("calibrate")
@click.argument("model", metavar="MODEL")
@click.argument("target", metavar="FOLDER")
@click.option(
    "--text",
    "text",
    multiple=True,
    required=True,
    metavar="FILE",
    help="A text of the kind that the model will write; several with several --text.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 24),
    default=20_000,
    metavar="N",
    help="Tokens of the text to run the model over, spread over all of it. [default: 20000]",
)
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.97,
    metavar="SHARE",
    help="Of the neurons that fire, the share that predictors should find. [default: 0.97]",
)
@click.option(
    "--rank",
    callback=check_rank,
    default="auto",
    metavar="N|auto",
    help="Rank of the predictors, a multiple of 32. [default: auto, for each layer the cheapest]",
)
@click.option(
    "--order",
    type=click.Choice(["coactivation", "none"]),
    default="coactivation",
    help="coactivation: store neurons that fire together near each other, where that saves reads; "
    "none: leave them as they are. [default: coactivation]",
)
@click.option(
    "--mem",
    callback=check_size,
    default="auto",
    metavar="SIZE|auto",
    help="Memory that the model may use while it runs over the text. [default: auto]",
)
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads. [default: all]"
)
@click.option("--restart", is_flag=True, help="Drop what an interrupted calibration has done.")
def command(
    model: str,
    target: str,
    text: tuple[str, ...],
    tokens: int,
    recall: float,
    rank: int | None,
    order: Order,
    mem: str,
    threads: int | None,
    restart: bool,
) -> None:
    """Write MODEL to FOLDER, with predictors of which neurons a token needs.

    MODEL is a model with a ReLU in the flash format, a folder or a name in the store, converted
    with `--codec row`. It is only read. Prints the folder; `--sparse predictor` then runs it. If it
    is interrupted, the same command goes on.
    """
    source, folder = store.find(model), Path(target).expanduser()
    check_new(folder)
    texts = [existing_file(name) for name in text]
    from flashllm import api
    from flashllm.cli.opening import say_if_compiling
    from flashllm.convert.calibration_scratch import scratch_folder

    start = time.monotonic()
    with Report() as report:
        say_if_compiling("cpu", report)
        with report.keeping(scratch_folder(folder)):
            found = api.calibrate(
                source,
                folder,
                text=texts,
                tokens=tokens,
                recall=recall,
                rank=rank,
                order=order,
                mem_budget=mem,
                threads=threads,
                restart=restart,
                on_progress=report.progress,
                on_message=report.message,
            )
    click.echo("\n".join(describe(found)), err=True)
    click.echo(f"{found.text_tokens} tokens, {time.monotonic() - start:.1f} s", err=True)
    click.echo(found.path)


def describe(found: Calibration) -> list[str]:
    """What was found, a line for each layer; reads are those of a token, with a window of 4."""
    lines = ["layer  rank  recall  false pos.  active  predicted  reads of a token"]
    for i, layer in enumerate(found.layers):
        q, before, after = layer.quality, layer.reads_before, layer.reads_after
        reads = f"{before.joined:.1f}"
        if after is not before:
            reads += f" → {after.joined:.1f}" if layer.order is not None else " (as they were)"
        lines.append(
            f"{i:>5}  {layer.predictor.rank:>4}  {percent(q.recall):>6}  "
            f"{percent(q.false_positives):>10}  {percent(q.active):>6}  "
            f"{percent(q.predicted):>9}  {reads}"
        )
    return lines


def percent(share: float) -> str:
    """A share in percent.

    >>> percent(0.0712)
    '7.1 %'
    """
    return f"{100 * share:.1f} %"
