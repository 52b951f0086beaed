"""flashllm plan: whether a model fits and how fast it runs, from headers alone."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Literal

import click

from flashllm.cli import measuring
from flashllm.cli.figures import how_sparse, percent
from flashllm.cli.options import (
    check_size,
    json_option,
    model_argument,
    sparse_option,
    window_option,
)
from flashllm.cli.report import Report
from flashllm.errors import OutOfBudget
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.model.memory import KVDtype
    from flashllm.model.options import Sparse
    from flashllm.model.plan import Plan
    from flashllm.model.sparse_plan import SparsePlan

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]


@click.command("plan")
@model_argument
@click.option(
    "--mem",
    callback=check_size,
    default="auto",
    metavar="SIZE|auto",
    help="Memory that the whole process may use, such as 6GB, 512MiB or 0.5x (of the model, and "
    "0.2 GB). [default: auto, what is free]",
)
@click.option(
    "-c",
    "--ctx-size",
    type=click.IntRange(1, 1 << 24),
    metavar="N",
    help="Tokens of context. [default: 4096, or fewer if the model was made for fewer]",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]),
    default="keep",
    help="What the weights would be converted to. [default: keep, or what is recommended]",
)
@click.option(
    "--kv-dtype",
    type=click.Choice(["f16", "f32", "q8"]),
    default="f16",
    help="What to keep keys and values of the context in. [default: f16]",
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(1, 1024),
    help="Compute threads that the speed is for. [default: one for each physical core]",
)
@sparse_option
@window_option
@json_option
def command(
    model: str,
    mem: str,
    ctx_size: int | None,
    dtype: Dtype,
    kv_dtype: KVDtype,
    threads: int | None,
    sparse: Sparse | None,
    window: int | None,
    as_json: bool,
) -> int:
    """Say what MODEL needs of disk and memory, whether it fits, and how fast it would run.

    MODEL is a name in the store or of a known model, a GGUF file, or a folder. Only headers are
    read; a known model need not be here. Exits with code 6 if the model does not fit.

    The speed is worked out from that of this computer's memory and disk, which is measured once, in
    some 10 s, unless for --json (see flashllm doctor).
    """
    from flashllm import api

    with Report(quiet=as_json) as report:
        # Scripts that want JSON are not made to wait for a measurement.
        measure = functools.partial(measuring.read_speed, report=report)
        plan = api.plan(
            model,
            mem_budget=mem,
            n_ctx=ctx_size,
            kv_dtype=kv_dtype,
            threads=threads,
            sparse=sparse,
            window=window,
            dtype=dtype,
            speed_at=api.stored_speed if as_json else measure,
        )
    if as_json:
        click.echo(json.dumps(facts(plan)))
    else:
        for label, text in describe(plan):
            click.echo(f"{label:<9} {text}")
        click.echo(plan.verdict)
    return 0 if plan.fits else OutOfBudget.exit_code


def facts(plan: Plan) -> dict[str, object]:
    """The plan as --json prints it. Sizes in bytes."""
    derived = ("resident_bytes", "total_bytes", "fits", "verdict")
    return dataclasses.asdict(plan) | {name: getattr(plan, name) for name in derived}


def describe(plan: Plan) -> list[tuple[str, str]]:
    """(label, text) of each fact but the verdict, for human eyes."""
    disk = f"{format_size(plan.disk_bytes)} needed, to get and convert it; then "
    ring = f", {format_size(plan.ring_bytes)} for the rest to pass through"
    rows = [
        ("model", f"{plan.name}, {plan.family} family"),
        ("weights", f"{format_size(plan.weight_bytes)} of {' and '.join(plan.dtypes)}"),
        ("disk", (disk if plan.disk_bytes else "") + f"{format_size(plan.stored_bytes)} kept"),
        ("memory", f"{format_size(plan.total_bytes)} of the {format_size(plan.budget)} allowed"),
        ("", f"{format_size(plan.overhead_bytes)} flashllm itself"),
        ("", f"{format_size(plan.kv_bytes)} {plan.n_ctx} tokens of context in {plan.kv_dtype}"),
        ("", f"{format_size(plan.scratch_bytes)} buffers and the tokeniser"),
        (
            "",
            f"{format_size(plan.pinned_bytes)} weights that stay" + (ring if plan.streams else ""),
        ),
        ("at least", f"{format_size(plan.smallest_budget)} of memory"),
    ]
    if plan.streams:
        streamed = f"{format_size(plan.streamed_bytes)} read from disk for each token"
        rows.append(("streamed", f"{streamed}, of {format_size(plan.used_bytes)} used"))
    if plan.sparse:
        rows += describe_sparse(plan.sparse)
    if plan.tok_s:
        least, most = plan.tok_s
        rows.append(("speed", f"{least:.3g} to {most:.3g} tok/s, as a reply begins"))
    return rows + [("note", warning) for warning in plan.warnings]


def describe_sparse(sparse: SparsePlan) -> list[tuple[str, str]]:
    """(label, text) of how a model runs sparse, and why so."""
    rows = [("sparse", how_sparse(sparse.mode).removeprefix("sparse: "))]
    if sparse.active is not None:
        computed = "predicted and computed" if sparse.is_lossy else "fire and are computed"
        rows.append(
            ("", f"{percent(sparse.active)} of {format_size(sparse.ffn_bytes)} neurons {computed}")
        )
    if sparse.ranks and sparse.recall is not None and sparse.false_positives is not None:
        low, high = sparse.ranks
        ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
        rows.append(
            (
                "",
                f"predictors of {ranks}, calibrated to find {percent(sparse.recall)} of those that "
                f"fire, and {percent(sparse.false_positives)} of the others",
            )
        )
    if not sparse.window_bytes:
        rows.append(("window", "none needed: all neurons stay in memory"))
        return rows
    rows.append(("window", f"{format_size(sparse.window_bytes)} for neurons used of late"))
    if sparse.window_tokens is not None and sparse.new_bytes is not None:
        rows[-1] = (
            "window",
            f"{rows[-1][1]}: of {sparse.window_tokens} tokens before the present one; "
            f"{format_size(sparse.new_bytes)} of new ones a token",
        )
    rows.append(
        (
            "reads",
            f"units of {sparse.unit_bytes >> 10} KiB, {sparse.readers} or more at once; two with "
            f"at most {sparse.gap_bytes >> 10} KiB between them are one",
        )
    )
    return rows
