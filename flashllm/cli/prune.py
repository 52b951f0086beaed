"""flashllm prune: weights that matter least become zero, and are not stored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from flashllm.cli.options import check_new, check_size, existing_file
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.hub import store
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.convert.pruning import Pruned

Method = Literal["magnitude", "wanda", "sparsegpt"]
Dtype = Literal["keep", "f16", "bf16", "q8", "q4"]


@click.command("prune")
@click.argument("model", metavar="MODEL")
@click.argument("target", metavar="FOLDER")
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Share of the weights of attention and feed-forward that becomes zero. [default: 0.5]",
)
@click.option(
    "--pattern",
    metavar="N:M",
    help="Instead of a share: of each M weights side by side N stay, such as 2:4.",
)
@click.option(
    "--method",
    type=click.Choice(["magnitude", "wanda", "sparsegpt"]),
    default="wanda",
    help="wanda: the weights times what they meet; sparsegpt: the others make up for those that "
    "go, which takes longer; magnitude: the smallest, without text. [default: wanda]",
)
@click.option(
    "--text",
    "text",
    multiple=True,
    metavar="FILE",
    help="A text of the kind that the model will read and write; several with several --text.",
)
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 24),
    default=32_768,
    metavar="N",
    help="Tokens of the text to use, spread over all of it. [default: 32768]",
)
@click.option(
    "--dtype",
    type=click.Choice(["keep", "f16", "bf16", "q8", "q4"]),
    default="keep",
    help="Dtype of what stays; keep: as it is, f32 becoming f16 and q4m q4. [default: keep]",
)
@click.option(
    "--mem",
    callback=check_size,
    default="auto",
    metavar="SIZE|auto",
    help="Memory that may be used; a layer and the text must fit. [default: auto]",
)
@click.option(
    "-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="Threads. [default: all]"
)
@click.option("--restart", is_flag=True, help="Drop what an interrupted pruning has done.")
def command(
    model: str,
    target: str,
    sparsity: float | None,
    pattern: str | None,
    method: Method,
    text: tuple[str, ...],
    tokens: int,
    dtype: Dtype,
    mem: str,
    threads: int | None,
    restart: bool,
) -> None:
    """Write MODEL to FOLDER, pruned: lossy, so measure it with `flashllm eval`.

    MODEL is a model in the flash format, a folder or a name in the store, best in 16 bits. It is
    only read. Matrices that are as sparse already are only stored as bitmaps. Prints the folder.
    If it is interrupted, the same command goes on.
    """
    if sparsity is not None and pattern is not None:
        raise InvalidInput("--sparsity and --pattern: choose one")
    source, folder = store.find(model), Path(target).expanduser()
    check_new(folder)
    texts = [existing_file(name) for name in text]
    from flashllm import api
    from flashllm.cli.opening import say_if_compiling
    from flashllm.flash.partial import partial_folder

    start = time.monotonic()
    with Report() as report:
        say_if_compiling("cpu", report)
        with report.keeping(partial_folder(folder)):
            found = api.prune(
                source,
                folder,
                sparsity=pattern or (0.5 if sparsity is None else sparsity),
                method=method,
                text=texts,
                tokens=tokens,
                dtype=dtype,
                mem_budget=mem,
                threads=threads,
                restart=restart,
                on_progress=report.progress,
                on_message=report.message,
            )
    sizes = [sum(f.stat().st_size for f in path.iterdir()) for path in (source, found.path)]
    click.echo(f"{describe(found)}, {' → '.join(map(format_size, sizes))}", err=True)
    click.echo(f"{time.monotonic() - start:.1f} s", err=True)
    click.echo(found.path)


def describe(found: Pruned) -> str:
    """What was done, in a few words."""
    told = f"{found.sparsity:.1%} of the layers' weights are zero"
    if found.already:
        told += f"; {found.already} matrices were pruned already"
    return told
