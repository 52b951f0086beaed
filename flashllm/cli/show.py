"""flashllm show: what a model is, from its headers alone."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashllm.cli.options import json_option, model_argument
from flashllm.hub import store
from flashllm.hub.origin import read_origin
from flashllm.hub.recommended import recommended
from flashllm.model.config import ModelConfig
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.flash.format import FlashModel, Part

_TILE_WEIGHTS = 512


@click.command("show")
@model_argument
@click.option("--template", is_flag=True, help="Print the chat template, and nothing else.")
@json_option
def command(model: str, template: bool, as_json: bool) -> None:
    """Describe MODEL, a name in the store or a folder: configuration, sizes, template, licence.

    Reads headers only, and checks them.
    """
    from flashllm.flash.format import read_model
    from flashllm.generate.template import read_template

    path = store.find(model)
    found = read_model(path)
    source = read_template(path)
    if template:
        click.echo(source if source is not None else "", nl=source is None)
    elif as_json:
        click.echo(json.dumps(facts(path, found) | {"chat_template": source}))
    else:
        click.echo(
            "\n".join(f"{label:<11} {text}" for label, text in describe(path, found, source))
        )


def facts(path: Path, model: FlashModel) -> dict[str, Any]:
    """What the headers tell, as --json prints it. Sizes in bytes."""
    manifest, origin = model.manifest, read_origin(path)
    return {
        "name": manifest.name,
        "path": str(path),
        "created_by": manifest.created_by,
        "source": manifest.source,
        "origin": dataclasses.asdict(origin) if origin else None,
        "licence": manifest.licence or (origin and origin.licence),
        "config": manifest.config,
        "codec": manifest.codec,
        "dtype": manifest.dtype,
        "loss": manifest.loss,
        "weights": weights_by_dtype(model),
        "units": sum(group.units for group in model.groups.values()),
        "unit_bytes": model.unit_bytes,
        "file_bytes": sum(entry.nbytes for entry in manifest.files.values()),
        "recommended": dict(recommended(path)),
    }


def weights_by_dtype(model: FlashModel) -> dict[str, dict[str, int]]:
    """How many weights there are of each dtype, and the bytes they take without padding."""
    from flashllm.flash.layout import tile_bytes

    counts: Counter[str] = Counter()
    for group in model.groups.values():
        for part in group.parts:
            counts.update(weights_of(part))
    return {
        dtype: {"weights": count, "bytes": count * tile_bytes(dtype) // _TILE_WEIGHTS}
        for dtype, count in counts.most_common()
    }


def weights_of(part: Part) -> Counter[str]:
    """How many weights of each dtype `part` holds."""
    from flashllm.flash.format import MatrixPart

    if isinstance(part, MatrixPart):
        return Counter({part.dtype: part.rows * part.cols})
    counts: Counter[str] = Counter()
    for dtype in part.dtypes:
        counts[dtype] += part.neurons * part.width
    return counts


def pruned_text(pruned: Mapping[str, Any]) -> str:
    """How a model was pruned: lossy.

    >>> pruned_text({"method": "wanda", "sparsity": 0.5, "group": 4, "text_tokens": 2048})
    '50 % zero, 2 of each 4, by wanda on 2048 tokens (lossy)'
    """
    share, group = pruned["sparsity"], pruned["group"]
    pattern = f", {round(share * group)} of each {group}" if group else ""
    text = f" on {pruned['text_tokens']} tokens" if pruned["text_tokens"] else ""
    return f"{100 * share:.4g} % zero{pattern}, by {pruned['method']}{text} (lossy)"


def describe(path: Path, model: FlashModel, template: str | None) -> list[tuple[str, str]]:
    """(label, text) of each fact, for human eyes."""
    told = facts(path, model)
    config = ModelConfig.from_json(told["config"])
    heads = config.attention
    weights = [
        f"{dtype}: {entry['weights'] / 1e6:.1f} M in {format_size(entry['bytes'])}"
        for dtype, entry in told["weights"].items()
    ]
    pruned = told["source"].get("pruned")
    loss = [f"{role} {error:.2%}" for role, error in (told["loss"] or {}).items()]
    rows = [
        ("name", told["name"]),
        ("folder", told["path"]),
        ("licence", told["licence"] or "not told"),
        ("source", f"{told['source'].get('path')} ({told['source'].get('format')})"),
        *([("origin", origin.text)] if (origin := read_origin(path)) else []),
        ("family", f"{config.family}, made for {config.context_length} tokens"),
        (
            "shape",
            f"{config.n_layers} layers, width {config.hidden_size}, FFN {config.ffn.size}, "
            f"heads {heads.heads} on {heads.kv_heads} keys, vocabulary {config.vocab_size}",
        ),
        ("weights", "; ".join(weights)),
        ("files", f"{format_size(told['file_bytes'])} in {told['units']} {told['codec']} units"),
        ("dtype", told["dtype"]),
        *([("pruned", pruned_text(pruned))] if pruned else []),
        ("loss", "; ".join(loss) or "none: the source's own weights"),
        ("template", f"{len(template)} characters (--template)" if template else "none"),
    ]
    if told["recommended"]:
        settings = ", ".join(f"{name} {value:g}" for name, value in told["recommended"].items())
        rows.append(("recommended", settings))
    return rows
