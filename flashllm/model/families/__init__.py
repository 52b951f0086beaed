"""The model families flashllm runs, found by the architecture name a checkpoint carries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families import llama
from flashllm.model.families.base import Family, Slice, locate
from flashllm.model.families.keys import GGUFKeys, HFKeys, ReadVector

__all__ = ["FAMILIES", "Family", "Slice", "translate_gguf", "translate_hf"]

FAMILIES: tuple[Family, ...] = (llama.FAMILY,)

Translation = tuple[Family, ModelConfig, dict[str, tuple[Slice, ...]]]
"""Family, config, and the slices of the checkpoint behind every role."""


def translate_gguf(
    metadata: dict[str, Any], tensors: Collection[str], read_vector: ReadVector
) -> Translation:
    """What a GGUF file with these keys and tensors is.

    Raises UnsupportedModel, naming what is supported, or CorruptModel.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptModel("the file names no general.architecture; it is not a model")
    for family in FAMILIES:
        if architecture in family.gguf_architectures:
            keys = GGUFKeys(architecture, metadata, tensors, read_vector)
            config = family.config_from_gguf(keys)
            return family, config, locate(family.gguf_names, config)
    raise _unknown(architecture, {a for family in FAMILIES for a in family.gguf_architectures})


def translate_hf(
    metadata: dict[str, Any], tensors: Collection[str], read_vector: ReadVector
) -> Translation:
    """What a Hugging Face folder with this config.json and these tensors is.

    Raises UnsupportedModel, naming what is supported, or CorruptModel.
    """
    named = metadata.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise CorruptModel("config.json names no architectures; it is not of a language model")
    for family in FAMILIES:
        if named[0] in family.hf_architectures:
            keys = HFKeys(named[0], metadata, tensors, read_vector)
            config = family.config_from_hf(keys)
            return family, config, locate(family.hf_names, config)
    raise _unknown(named[0], {a for family in FAMILIES for a in family.hf_architectures})


def _unknown(architecture: str, known: set[str]) -> UnsupportedModel:
    return UnsupportedModel(
        f"architecture {architecture!r:.80} is not supported; this version runs: "
        f"{', '.join(sorted(known))}"
    )
