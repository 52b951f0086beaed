"""What a family must say: which architectures it runs, what its tensors are called, its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flashllm.errors import CorruptModel
from flashllm.model.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family as data.

    gguf_names and gguf_layer_names map our roles to GGUF tensor names; "{i}" is the layer number.
    Roles of matrices: embed, output (absent when tied), attn_q, attn_k, attn_v, attn_out, ffn_gate,
    ffn_up, ffn_down. Roles of vectors: output_norm, attn_norm, ffn_norm.
    """

    name: str
    architectures: tuple[str, ...]
    gguf_names: Mapping[str, str]
    gguf_layer_names: Mapping[str, str]
    config_from_gguf: Callable[[Mapping[str, Any], bool], ModelConfig]
    """(metadata, has an output tensor of its own) to config; raises CorruptModel."""


def integer(metadata: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """metadata[key], a positive whole number. Raises CorruptModel naming the key."""
    value = metadata.get(key, default)
    if value is None:
        raise CorruptModel(f"GGUF metadata lacks {key!r}; the file is incomplete")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CorruptModel(f"GGUF metadata: {key} is {value!r}, expected a positive whole number")
    return value


def number(metadata: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """metadata[key], a number. Raises CorruptModel naming the key."""
    value = metadata.get(key, default)
    if value is None:
        raise CorruptModel(f"GGUF metadata lacks {key!r}; the file is incomplete")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise CorruptModel(f"GGUF metadata: {key} is {value!r}, expected a number")
    return float(value)
