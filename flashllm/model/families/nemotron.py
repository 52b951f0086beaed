"""Nemotron and Minitron: squared ReLU without gates, layer norms, part of a head turns."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, gguf_ffn, gguf_layer_norm, hf_config, hf_ffn
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind, NormSpec


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's nemotron.* keys. Raises CorruptModel or UnsupportedModel."""
    return gguf_config(
        keys,
        "nemotron",
        [LayerKind(gguf_rope(keys, "half"))],
        norm=gguf_layer_norm(keys),
        ffn=gguf_ffn(keys, activation="relu2", gated=False),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    return hf_config(
        keys,
        "nemotron",
        [LayerKind(hf_rope(keys, partial=0.5))],
        norm=NormSpec("layer", keys.positive("norm_eps", 1e-5), bias=True),
        ffn=hf_ffn(keys, activation=keys.activation(default="relu2"), gated=False),
    )


FAMILY = Family(
    name="nemotron",
    hf_architectures=("NemotronForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("nemotron",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
