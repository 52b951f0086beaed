"""flashllm ls: the models on this computer."""

from __future__ import annotations

import dataclasses
import json

import click

from flashllm.cli.options import json_option
from flashllm.hub import manifests, store
from flashllm.sizes import format_size


@click.command("ls")
@json_option
def command(as_json: bool) -> None:
    """List the models on this computer, with where they are kept.

    Set FLASHLLM_HOME to keep them elsewhere.
    """
    models = store.list_models()
    if as_json:
        rows = [dataclasses.asdict(model) | {"path": str(model.path)} for model in models]
        click.echo(json.dumps({"folder": str(store.models_dir()), "models": rows}))
        return
    if not models:
        known = ", ".join(sorted(manifests.known()))
        click.echo(f"No models yet in {store.models_dir()}. `flashllm pull` knows: {known}.")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        click.echo(
            f"{model.name:<{width}}  {format_size(model.bytes):>8}  {model.dtype:<5} {model.family}"
        )
    click.echo(f"in {store.models_dir()}", err=True)
