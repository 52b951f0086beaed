"""The model families flashllm runs, found by the architecture name a checkpoint carries.

A new family is a file here, listed in FAMILIES; its tiny models belong into
tools/family_variants.py, which make the goldens that every family is held to.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from typing import Any

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families import (
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt_neox,
    granite,
    llama,
    mistral3,
    nemotron,
    olmo2,
    opt,
    persimmon,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
)
from flashllm.model.families.base import Family, Names, Slice, locate
from flashllm.model.families.keys import GGUFKeys, HFKeys, ReadVector

__all__ = ["FAMILIES", "Family", "Slice", "Translation", "translate_gguf", "translate_hf"]

FAMILIES: tuple[Family, ...] = (
    llama.FAMILY,
    mistral3.FAMILY,
    smollm3.FAMILY,
    qwen2.FAMILY,
    qwen3.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
    olmo2.FAMILY,
    opt.FAMILY,
    falcon.FAMILY,
    gpt_neox.FAMILY,
    stablelm.FAMILY,
    granite.FAMILY,
    persimmon.FAMILY,
    nemotron.FAMILY,
)

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


@dataclasses.dataclass(frozen=True)
class Translation:
    """What a checkpoint is: its family, its config, and how it calls its tensors.

    renamed: the checkpoint's names of tensors, by the family's. unused: regular expressions of the
    family's names of tensors that nobody needs to read.
    """

    family: Family
    config: ModelConfig
    names: Names
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def slices(self, role: str) -> tuple[Slice, ...]:
        """Where the rows of a role are: slices that lie below each other."""
        return tuple(
            dataclasses.replace(piece, tensor=self.renamed.get(piece.tensor, piece.tensor))
            for piece in locate(self.names, self.config, role)
        )

    def ignores(self, tensor: str) -> bool:
        """Whether a tensor of the checkpoint is one that nobody needs to read."""
        name = _family_name(self.family, tensor)
        return any(re.fullmatch(pattern, name) for pattern in self.unused)


def translate_gguf(
    metadata: Mapping[str, Any], tensors: Collection[str], read_vector: ReadVector
) -> Translation:
    """What a GGUF file with these keys and tensors is.

    Raises UnsupportedModel, naming what is supported, or CorruptModel.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptModel("the file names no general.architecture; it is not a model")
    if metadata.get(f"{architecture}.expert_count"):
        raise _experts(architecture)
    for family in FAMILIES:
        if architecture in family.gguf_architectures and family.config_from_gguf:
            keys = GGUFKeys(architecture, metadata, tensors, read_vector)
            return Translation(family, family.config_from_gguf(keys), family.gguf_names)
    raise _unknown(architecture, {a for family in FAMILIES for a in family.gguf_architectures})


def translate_hf(
    metadata: Mapping[str, Any], tensors: Collection[str], read_vector: ReadVector
) -> Translation:
    """What a Hugging Face folder with this config.json and these tensors is.

    Raises UnsupportedModel, naming what is supported, or CorruptModel.
    """
    named = metadata.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise CorruptModel("config.json names no architectures; it is not of a language model")
    _refuse_quantised(metadata)
    if any(metadata.get(key) for key in _EXPERTS):
        raise _experts(named[0])
    for family in FAMILIES:
        if named[0] in family.hf_architectures:
            renamed = {_family_name(family, name): name for name in tensors}
            config = family.config_from_hf(HFKeys(named[0], metadata, renamed, read_vector))
            head = (re.escape(str(family.hf_names["output"])),) if config.tied_head else ()
            unused = (*family.hf_unused, *head)
            return Translation(family, config, family.hf_names, renamed, unused)
    raise _unknown(named[0], {a for family in FAMILIES for a in family.hf_architectures})


def _family_name(family: Family, tensor: str) -> str:
    """A tensor's name as the family spells it."""
    for prefix, usual in family.hf_prefixes.items():
        if tensor.startswith(prefix):
            return usual + tensor.removeprefix(prefix)
    return tensor


def _refuse_quantised(metadata: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel if the weights are in a format of another library."""
    found = metadata.get("quantization_config") or metadata.get("compression_config")
    if found:
        method = found.get("quant_method") if isinstance(found, Mapping) else None
        raise UnsupportedModel(
            f"the weights are quantised ({method or 'by an unnamed method'!r:.80}), which flashllm "
            "does not read; take the original checkpoint or a GGUF of it"
        )


def _experts(architecture: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"architecture {architecture!r:.80} is a mixture-of-experts model; none is supported yet"
    )


def _unknown(architecture: str, known: set[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"architecture {architecture!r:.80} is not supported; this version runs: "
        f"{', '.join(sorted(known))}"
    )
