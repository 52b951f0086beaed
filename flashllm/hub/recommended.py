"""How a model's makers would have it sample: its manifest says so, or its own files do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flashllm.documents import parse_object
from flashllm.errors import FlashError
from flashllm.generate.tokenizer_hf import sampling_settings
from flashllm.hub import manifests

FILE_NAME = "generation_config.json"

_OURS = {"repetition_penalty": "repeat_penalty"}
_MAX_BYTES = 1 << 20


def recommended(model: Path) -> Mapping[str, float]:
    """The sampling settings to use for the stored model `model`, by their flag's name.

    Those of the manifest, if it is a known model; else those that its checkpoint came with.
    """
    known = manifests.known().get(model.name.partition("--")[0])
    return known.recommended if known else published(model)


def published(model: Path) -> dict[str, float]:
    """The settings in the model's generation_config.json; none if there is none, or none sound."""
    path = model / FILE_NAME
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return {}
        data = parse_object(path.read_bytes(), str(path), _MAX_BYTES)
    except (OSError, FlashError):
        return {}
    return {_OURS.get(name, name): value for name, value in sampling_settings(data).items()}
