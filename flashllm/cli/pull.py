"""flashllm pull: fetch a known model and convert it."""

from __future__ import annotations

import click

from flashllm.cli import opening
from flashllm.cli.options import offline_option
from flashllm.cli.report import Report
from flashllm.hub.manifests import DEFAULT_MODEL


@click.command("pull")
@click.argument("model", metavar="[MODEL]", default=DEFAULT_MODEL)
@offline_option
def command(model: str, offline: bool) -> None:
    """Fetch MODEL, check its hash, convert it and keep it in the store. Prints its folder.

    A model that is already here is left alone. An interrupted pull leaves nothing behind.
    """
    with Report() as report:
        path = opening.locate(model, offline, report)
    click.echo(path)
