"""Gemma 1: a Llama with a scaled embedding, tanh GELU, and norms that lack one."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, gguf_ffn, hf_config, hf_ffn
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's gemma.* keys. Raises CorruptModel or UnsupportedModel."""
    return gguf_config(
        keys,
        "gemma",
        [LayerKind(gguf_rope(keys, "half"))],
        ffn=gguf_ffn(keys, activation="gelu"),
        embed_scale=keys.integer("embedding_length") ** 0.5,
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json, whose "gelu" means the tanh form. Raises CorruptModel."""
    return hf_config(
        keys,
        "gemma",
        [LayerKind(hf_rope(keys))],
        ffn=hf_ffn(keys, activation="gelu"),
        tied=True,
        embed_scale=keys.integer("hidden_size") ** 0.5,
    )


FAMILY = Family(
    name="gemma",
    hf_architectures=("GemmaForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("gemma",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
