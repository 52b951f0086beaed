"""What a family must say: its architectures, its config, and where its tensors are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from flashllm.model.config import ModelConfig
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.roles import roles


@dataclasses.dataclass(frozen=True)
class Slice:
    """Rows of a tensor of the checkpoint: `rows` of them from row `first`; None: up to the end."""

    tensor: str
    first: int = 0
    rows: int | None = None


Place = Callable[[ModelConfig, int], tuple[Slice, ...]]
"""Where a role of layer i is, for roles that are not one whole tensor."""

Names = Mapping[str, "str | Place"]
"""Role, without "layers.i.", to a tensor's name, in which {i} is the layer, or to a Place."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family as data: how its checkpoints become a ModelConfig and our roles.

    gguf_names and hf_names add to, or replace, the names most checkpoints use (names.py). What is
    not listed in roles(config) is not looked for. hf_norm_offset: Hugging Face's weights of norms
    lack this summand (Gemma: 1).
    """

    name: str
    gguf_architectures: tuple[str, ...]
    hf_architectures: tuple[str, ...]
    config_from_gguf: Callable[[GGUFKeys], ModelConfig]
    config_from_hf: Callable[[HFKeys], ModelConfig]
    gguf_names: Names
    hf_names: Names
    hf_norm_offset: float = 0.0


def locate(names: Names, config: ModelConfig) -> dict[str, tuple[Slice, ...]]:
    """Where the rows of every role are: slices that lie below each other."""
    places: dict[str, tuple[Slice, ...]] = {}
    for role in roles(config):
        prefix, _, base = role.rpartition(".")
        layer = int(prefix.removeprefix("layers.")) if prefix else 0
        name = names[base]
        if isinstance(name, str):
            places[role] = (Slice(name.format(i=layer)),)
        else:
            places[role] = name(config, layer)
    return places
