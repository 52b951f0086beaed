"""flashllm pull: fetch a model and convert it."""

from __future__ import annotations

import json

import click

from flashllm.cli.options import json_option, offline_option
from flashllm.cli.report import Report
from flashllm.hub.manifests import DEFAULT_MODEL


@click.command("pull")
@click.argument("model", metavar="[MODEL]", default=DEFAULT_MODEL)
@click.option(
    "--revision", metavar="NAME", help="Branch, tag or commit on the hub. [default: main]"
)
@click.option(
    "--keep-download",
    is_flag=True,
    help="Leave the files as they came in Hugging Face's cache, instead of deleting them.",
)
@offline_option
@json_option
def command(
    model: str, revision: str | None, keep_download: bool, offline: bool, as_json: bool
) -> None:
    """Fetch MODEL, check its hash, convert it and keep it in the store. Prints its folder.

    MODEL is a known name (see `flashllm ls --available`), or OWNER/NAME[:QUANT] of the Hugging
    Face hub. QUANT chooses among GGUF files (Q4_K_M if there is one), or is what to convert
    safetensors to: keep (the default), q4, q4m, q8, f16, bf16, f32.

    \b
      flashllm pull qwen3-8b
      flashllm pull bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M
      flashllm pull HuggingFaceTB/SmolLM2-360M-Instruct:q8

    Before any weights come, it reads their headers and says whether flashllm can run them, what
    they need, and whether the disk has room. A model that is already here is left alone; an
    interrupted download is gone on with. HF_TOKEN opens gated models.
    """
    from flashllm import api

    with Report(quiet=as_json) as report:
        path = api.pull(
            model,
            revision=revision,
            offline=offline,
            keep_download=keep_download,
            on_progress=report.bytes,
            on_message=report.message,
        )
    click.echo(json.dumps({"name": path.name, "path": str(path)}) if as_json else path)
