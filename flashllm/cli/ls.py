"""flashllm ls: the models on this computer, and those it knows how to get."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import click

from flashllm.cli.options import json_option
from flashllm.hub import manifests, store
from flashllm.hub.manifests import Manifest
from flashllm.hub.sources import HubSource
from flashllm.sizes import format_size


@click.command("ls")
@click.option(
    "--available", is_flag=True, help="List the models that `flashllm pull` knows by name."
)
@json_option
def command(available: bool, as_json: bool) -> None:
    """List the models on this computer, with where they are kept.

    Set FLASHLLM_HOME to keep them elsewhere. With --available, list the models that can be pulled
    by name, with their size (parameters; download) and licence; others by OWNER/NAME of the hub.
    """
    if available:
        known = sorted(manifests.known().values(), key=lambda manifest: manifest.name)
        show_known([facts(manifest) for manifest in known], as_json)
    else:
        show_stored(as_json)


def show_stored(as_json: bool) -> None:
    """Print what is in the store, and what an interrupted download left there."""
    models, unfinished = store.list_models(), store.list_unfinished()
    if as_json:
        rows, others = (
            [dataclasses.asdict(item) | {"path": str(item.path)} for item in items]
            for items in (models, unfinished)
        )
        folder = str(store.models_dir())
        click.echo(json.dumps({"folder": folder, "models": rows, "unfinished": others}))
        return
    table([(model.name, format_size(model.bytes), model.dtype, model.family) for model in models])
    if not models:
        click.echo(
            f"No models yet in {store.models_dir()}. `flashllm pull` fetches "
            f"{manifests.DEFAULT_MODEL}; `flashllm ls --available` lists others."
        )
    for item in unfinished:
        click.echo(
            f"unfinished: {item.repo}, {format_size(item.bytes)} came; `flashllm pull` goes on, "
            f"`flashllm rm {item.repo}` gives it up",
            err=True,
        )
    if models:
        click.echo(f"in {store.models_dir()}", err=True)


def facts(manifest: Manifest) -> dict[str, Any]:
    """A known model, as --json prints it. Sizes in bytes."""
    return {
        "name": manifest.name,
        "aliases": list(manifest.aliases),
        "description": manifest.description,
        "family": manifest.architecture,
        "parameters": manifest.parameters,
        "download_bytes": manifest.download_bytes,
        "dtype": manifest.quant(),
        "context": manifest.context,
        "licence": manifest.licence,
        "gated": isinstance(manifest.source, HubSource) and manifest.source.gated,
        "homepage": manifest.homepage,
        "stored": store.in_store(manifest.name) is not None,
    }


def show_known(models: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Print the models that can be pulled by name."""
    if as_json:
        click.echo(json.dumps({"models": models}))
        return
    rows = [
        (
            ("* " if model["stored"] else "  ") + model["name"],
            count(model["parameters"]),
            format_size(model["download_bytes"] or 0),
            model["dtype"],
            model["licence"] + (" (gated)" if model["gated"] else ""),
        )
        for model in models
    ]
    table([("  name", "params", "download", "kept", "licence"), *rows])
    click.echo("* is here. Gated: accept the licence on the hub, and set HF_TOKEN.", err=True)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns: the first and the last to the left, figures to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        cells = [
            f"{text:<{width}}" if i in (0, len(row) - 1, len(row) - 2) else f"{text:>{width}}"
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def count(parameters: int) -> str:
    """A number of parameters, as models are called: 8.0B, 361M."""
    return f"{parameters / 1e9:.1f}B" if parameters >= 999.5e6 else f"{parameters / 1e6:.0f}M"
