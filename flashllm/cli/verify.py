"""flashllm verify: every byte of a model against its checksums."""

from __future__ import annotations

import json

import click

from flashllm.cli.options import json_option, model_argument
from flashllm.cli.report import Report
from flashllm.hub import store
from flashllm.sizes import format_size


@click.command("verify")
@model_argument
@json_option
def command(model: str, as_json: bool) -> None:
    """Check every unit of MODEL against its checksum, and every file against its hash.

    MODEL is a name in the store or a folder. Exits with code 4 if anything is damaged.
    """
    path = store.find(model)
    from flashllm.convert import verify

    with Report(quiet=as_json) as report:
        report.message(f"verifying {path}")
        found = verify(path, report.progress)
    if as_json:
        click.echo(json.dumps({"model": str(path), "units": found.units, "bytes": found.bytes}))
    else:
        click.echo(f"{path}: {found.units} units, {format_size(found.bytes)}, every one as written")
