"""What a family must say: its architectures, its config, and where its tensors are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from flashllm.model.config import ModelConfig
from flashllm.model.families.keys import GGUFKeys, HFKeys


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

    gguf_names and hf_names may name more than a checkpoint has: roles(config) says what is looked
    for. A family that GGUF does not know has no gguf_*. For Hugging Face's folders:
    hf_norm_offset: what the weights of norms lack (Gemma: 1). hf_prefixes: other beginnings of
    tensor names, to those of hf_names. hf_unused: regular expressions of tensors that a checkpoint
    may hold and nobody reads; all others must be read.
    """

    name: str
    hf_architectures: tuple[str, ...]
    config_from_hf: Callable[[HFKeys], ModelConfig]
    hf_names: Names
    gguf_architectures: tuple[str, ...] = ()
    config_from_gguf: Callable[[GGUFKeys], ModelConfig] | None = None
    gguf_names: Names = dataclasses.field(default_factory=dict)
    hf_norm_offset: float = 0.0
    hf_prefixes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    hf_unused: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)


def locate(names: Names, config: ModelConfig, role: str) -> tuple[Slice, ...]:
    """Where the rows of a role are: slices that lie below each other."""
    prefix, _, base = role.rpartition(".")
    layer = int(prefix.removeprefix("layers.")) if prefix else 0
    name = names[base]
    return (Slice(name.format(i=layer)),) if isinstance(name, str) else name(config, layer)
