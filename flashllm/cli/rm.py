"""flashllm rm: remove a model from the store."""

from __future__ import annotations

import sys

import click

from flashllm.cli.options import model_argument
from flashllm.errors import InvalidInput, ModelNotFound
from flashllm.flash.partial import partial_folder, remove_partial
from flashllm.hub import store
from flashllm.hub.manifests import NAME


@click.command("rm")
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def command(model: str, yes: bool) -> None:
    """Remove MODEL from the store. Asks first; other folders are never touched.

    OWNER/NAME of a repository whose download was interrupted removes what came of it, and so does
    MODEL of one whose conversion was.
    """
    path = store.in_store(model)
    unfinished = [
        item
        for item in store.list_unfinished()
        if path is None and item.repo.casefold() == model.partition(":")[0].casefold()
    ]
    place = store.models_dir() / model if NAME.fullmatch(model) else None
    partial = partial_folder(place) if place and partial_folder(place).exists() else None
    if path is None and not unfinished and partial is None:
        raise ModelNotFound(f"no model {model!r} in {store.models_dir()}; see `flashllm ls`")
    what = path or (unfinished[0].path if unfinished else partial)
    if not yes:
        if not sys.stdin.isatty():
            raise InvalidInput(f"refusing to remove {what} without asking; say -y if you mean it")
        if not click.confirm(f"Remove {what}?", err=True):
            raise click.Abort
    if path:
        store.remove(model)
    for item in unfinished:
        store.remove_unfinished(item)
    if place and partial:
        remove_partial(place)
    click.echo(f"removed {what}", err=True)
