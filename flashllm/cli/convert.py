"""flashllm convert: a GGUF file becomes a model in the flash format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import click

from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.hub import store
from flashllm.sizes import format_size

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4"]
Codec = Literal["tile", "row"]


@click.command("convert")
@click.argument("source", metavar="FILE.gguf")
@click.argument("target", metavar="[FOLDER]", required=False)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "f32", "f16", "bf16", "q8", "q4"]),
    default="keep",
    help="Weights as they are (keep), or requantised; the loss is measured. [default: keep]",
)
@click.option(
    "--codec",
    type=click.Choice(["tile", "row"]),
    default="tile",
    help="Inner layout: tile for dense models, row for ReLU-sparse ones. [default: tile]",
)
@click.option("--name", metavar="NAME", help="Name in the store. [default: from the file's name]")
def command(source: str, target: str | None, dtype: Dtype, codec: Codec, name: str | None) -> None:
    """Convert the GGUF file FILE.gguf to the flash format. Prints the folder.

    Without FOLDER it goes to the store, where `flashllm chat -m NAME` finds it. The source is only
    read; a conversion that is interrupted leaves nothing behind.
    """
    path = Path(source).expanduser()
    folder = Path(target).expanduser() if target else store.place_for(name or name_of(path))
    if folder.exists():
        raise InvalidInput(f"{folder} exists already; name another place, or remove it first")
    from flashllm import api

    with Report() as report:
        report.message(f"converting {path} to {folder}")
        result = api.convert(path, folder, dtype=dtype, codec=codec, on_progress=report.progress)
    size = sum(file.stat().st_size for file in result.iterdir())
    click.echo(f"{path.name} → {format_size(size)}", err=True)
    click.echo(result)


def name_of(path: Path) -> str:
    """A name for the store, made of the file's."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "model"
