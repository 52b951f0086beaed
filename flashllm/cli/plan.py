"""flashllm plan: whether a model fits, from headers alone."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Literal

import click

from flashllm.cli.options import check_size, json_option, model_argument
from flashllm.errors import OutOfBudget
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.model.plan import KVDtype, Plan

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]


@click.command("plan")
@model_argument
@click.option(
    "--mem",
    callback=check_size,
    default="auto",
    metavar="SIZE|auto",
    help="Memory that the whole process may use, such as 6GB, 512MiB or 1.5x (of the model). "
    "[default: auto, what is free]",
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
@json_option
def command(
    model: str,
    mem: str | None,
    ctx_size: int | None,
    dtype: Dtype,
    kv_dtype: KVDtype,
    as_json: bool,
) -> int:
    """Say what MODEL needs of disk and memory, and whether it fits.

    MODEL is a name in the store or of a known model, a GGUF file, or a folder. Only headers are
    read; a known model need not be here. Exits with code 6 if the model does not fit.
    """
    from flashllm import api

    plan = api.plan(model, mem_budget=mem, n_ctx=ctx_size, kv_dtype=kv_dtype, dtype=dtype)
    if as_json:
        click.echo(json.dumps(facts(plan)))
    else:
        for label, text in describe(plan):
            click.echo(f"{label:<9} {text}")
        click.echo(plan.verdict)
    return 0 if plan.fits else OutOfBudget.exit_code


def facts(plan: Plan) -> dict[str, object]:
    """The plan as --json prints it. Sizes in bytes."""
    derived = ("total_bytes", "smallest_budget", "fits", "largest_context", "verdict")
    return dataclasses.asdict(plan) | {name: getattr(plan, name) for name in derived}


def describe(plan: Plan) -> list[tuple[str, str]]:
    """(label, text) of each fact but the verdict, for human eyes."""
    disk = f"{format_size(plan.disk_bytes)} needed, to get and convert it; then "
    rows = [
        ("model", f"{plan.name}, {plan.family} family"),
        ("weights", f"{format_size(plan.weight_bytes)} of {' and '.join(plan.dtypes)}"),
        ("disk", (disk if plan.disk_bytes else "") + f"{format_size(plan.stored_bytes)} kept"),
        (
            "memory",
            f"{format_size(plan.total_bytes)}: {format_size(plan.resident_bytes)} weights, "
            f"{format_size(plan.kv_bytes)} for {plan.n_ctx} tokens of context in {plan.kv_dtype}, "
            f"{format_size(plan.overhead_bytes)} for flashllm itself",
        ),
        ("allowed", format_size(plan.budget)),
    ]
    return rows + [("note", warning) for warning in plan.warnings]
