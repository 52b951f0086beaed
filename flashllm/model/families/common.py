"""Configs as most families state them; a family replaces what it does otherwise."""

from __future__ import annotations

import dataclasses
from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import MAX_LAYERS, ModelConfig
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.specs import AttentionSpec, FFNSpec, LayerKind, NormSpec, RopeSpec


def gguf_config(keys: GGUFKeys, family: str, rope: RopeSpec, **parts: Any) -> ModelConfig:
    """The config of a pre-norm, gated SiLU, RMSNorm model; `parts` replace fields."""
    if keys.get("expert_count"):
        raise UnsupportedModel("mixture-of-experts models are not supported yet")
    hidden = keys.integer("embedding_length")
    heads = keys.integer("attention.head_count")
    head_dim = keys.integer("attention.key_length", max(hidden // heads, 1))
    config = ModelConfig(
        family=family,
        hidden_size=hidden,
        vocab_size=keys.vocab_size,
        context_length=keys.integer("context_length"),
        norm=NormSpec("rms", keys.number("attention.layer_norm_rms_epsilon")),
        attention=AttentionSpec(
            heads=heads,
            kv_heads=keys.integer("attention.head_count_kv", heads),
            head_dim=head_dim,
            scale=head_dim**-0.5,
        ),
        ffn=FFNSpec(keys.integer("feed_forward_length"), "silu"),
        kinds=(LayerKind(rope),),
        layers=(0,) * keys.integer("block_count", most=MAX_LAYERS),
        tied_head="output.weight" not in keys.tensors,
    )
    return dataclasses.replace(config, **parts)


def hf_config(keys: HFKeys, family: str, rope: RopeSpec, **parts: Any) -> ModelConfig:
    """As gguf_config, of Hugging Face's Llama-like config.json."""
    hidden = keys.integer("hidden_size")
    heads = keys.integer("num_attention_heads")
    head_dim = keys.integer("head_dim", max(hidden // heads, 1))
    config = ModelConfig(
        family=family,
        hidden_size=hidden,
        vocab_size=keys.integer("vocab_size"),
        context_length=keys.integer("max_position_embeddings"),
        norm=NormSpec("rms", keys.number("rms_norm_eps")),
        attention=AttentionSpec(
            heads=heads,
            kv_heads=keys.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            scale=head_dim**-0.5,
        ),
        ffn=FFNSpec(keys.integer("intermediate_size"), "silu"),
        kinds=(LayerKind(rope),),
        layers=(0,) * keys.integer("num_hidden_layers", most=MAX_LAYERS),
        tied_head=keys.flag("tie_word_embeddings", False),
    )
    return dataclasses.replace(config, **parts)
