"""Llama and what shares its blocks: SmolLM2, Mistral, Yi."""

from __future__ import annotations

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_config
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.specs import RopeSpec


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's llama.* keys. Raises CorruptModel or UnsupportedModel."""
    if keys.text("rope.scaling.type", "none") != "none":
        raise UnsupportedModel(
            f"RoPE scaling {keys.get('rope.scaling.type')!r} is not supported yet"
        )
    heads = keys.integer("attention.head_count")
    head_dim = keys.integer(
        "attention.key_length", max(keys.integer("embedding_length") // heads, 1)
    )
    dims = keys.integer("rope.dimension_count", head_dim)
    rope = RopeSpec(keys.number("rope.freq_base", 10000.0), dims, "interleaved")
    return gguf_config(keys, "llama", rope)


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    head_dim = keys.integer(
        "head_dim", max(keys.integer("hidden_size") // keys.integer("num_attention_heads"), 1)
    )
    return hf_config(keys, "llama", RopeSpec(keys.number("rope_theta", 10000.0), head_dim, "half"))


FAMILY = Family(
    name="llama",
    gguf_architectures=("llama",),
    hf_architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    config_from_gguf=config_from_gguf,
    config_from_hf=config_from_hf,
    gguf_names=GGUF_NAMES,
    hf_names=LLAMA_NAMES,
)
