"""flashllm rm: remove a model from the store."""

from __future__ import annotations

import sys

import click

from flashllm.cli.options import model_argument
from flashllm.errors import InvalidInput, ModelNotFound
from flashllm.hub import store


@click.command("rm")
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(model: str, yes: bool) -> None:
    """Remove MODEL from the store. Asks first; other folders are never touched."""
    path = store.in_store(model)
    if path is None:
        raise ModelNotFound(f"no model {model!r} in {store.models_dir()}; see `flashllm ls`")
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"refusing to remove {path} without asking; say -y if you mean it")
        if not click.confirm(f"Remove {path}?", err=True):
            raise click.Abort
    store.remove(model)
    click.echo(f"removed {path}", err=True)
