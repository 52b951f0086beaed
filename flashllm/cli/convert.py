"""flashllm convert: a checkpoint becomes a model in the flash format."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Literal

import click

from flashllm.cli.options import check_new
from flashllm.cli.report import Report
from flashllm.hub import store
from flashllm.sizes import format_size

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]
Codec = Literal["tile", "row"]


@click.command("convert")
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="[FOLDER]", required=False)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]),
    default="keep",
    help="Weights as they are (keep), or requantised; the loss is measured. q4: 4.5 bits a weight, "
    "q4m: 5, with a minimum; both keep the output matrix in q8. [default: keep]",
)
@click.option("--pure", is_flag=True, help="The output matrix in --dtype as well.")
@click.option(
    "--codec",
    type=click.Choice(["tile", "row"]),
    default="tile",
    help="Inner layout: tile for dense models, row for ReLU-sparse ones. [default: tile]",
)
@click.option(
    "--sparse-min",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Store matrices of which at least this share is zero, such as 0.4, as bitmaps and what is "
    "not zero, where that is smaller: for pruned models. No weight changes by it.",
)
@click.option("--name", metavar="NAME", help="Name in the store. [default: from the file's name]")
@click.option("--restart", is_flag=True, help="Drop what an interrupted conversion has done.")
@click.option(
    "-t", "--threads", type=click.IntRange(1), metavar="N", help="Threads. [default: all cores]"
)
def command(
    source: str,
    target: str | None,
    dtype: Dtype,
    pure: bool,
    codec: Codec,
    sparse_min: float | None,
    name: str | None,
    restart: bool,
    threads: int | None,
) -> None:
    """Convert SOURCE, a GGUF file or a Hugging Face folder, to the flash format.

    Prints the folder. Without FOLDER it goes to the store, where `flashllm chat -m NAME` finds it.
    The source is only read. If it is interrupted, the same command goes on; `flashllm rm NAME`
    removes what it left in the store.
    """
    path = Path(source).expanduser()
    folder = Path(target).expanduser() if target else store.place_for(name or name_of(path))
    check_new(folder)
    from flashllm import api
    from flashllm.flash.format import read_manifest
    from flashllm.flash.partial import partial_folder

    start = time.monotonic()
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        click.echo(text, err=True)

    with Report() as report:
        report.message(f"converting {path} to {folder}")
        with report.keeping(partial_folder(folder)):
            result = api.convert(
                path,
                folder,
                dtype=dtype,
                pure=pure,
                codec=codec,
                sparse_min=sparse_min,
                restart=restart,
                threads=threads,
                on_progress=report.bytes,
                on_message=tell,
            )
    manifest = read_manifest(result)
    size = sum(file.stat().st_size for file in result.iterdir())
    read, seconds = sum(manifest.source["files"].values()), time.monotonic() - start
    # What an earlier run did is no merit of this one's.
    rate = "" if told else f", {read / seconds / 1e9:.2f} GB/s"
    click.echo(
        f"{path.name}, {format_size(read)} → {format_size(size)}, {describe_loss(manifest.loss)}, "
        f"{seconds:.1f} s{rate}",
        err=True,
    )
    click.echo(result)


def describe_loss(loss: dict[str, float] | None) -> str:
    """What the weights lost, in a few words.

    >>> describe_loss({"ffn_up": 0.0754, "attn_v": 0.0798})
    'weights off by 7.5 % (ffn_up) to 8 % (attn_v)'
    """
    if not loss:
        return "no weight changed"
    least, most = (choose(loss, key=lambda role: loss[role]) for choose in (min, max))
    told = f"weights off by {100 * loss[least]:.2g} % ({least})"
    return told if least == most else f"{told} to {100 * loss[most]:.2g} % ({most})"


def name_of(path: Path) -> str:
    """A name for the store, made of the file's or folder's."""
    stem = path.absolute().name if path.is_dir() else path.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._") or "model"
