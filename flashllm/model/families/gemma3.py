"""Gemma 3, its text: five local layers to a global one, with positions of their own, QK norms."""

from __future__ import annotations

from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import (
    gguf_attention,
    gguf_config,
    gguf_ffn,
    gguf_rms,
    hf_attention,
    hf_config,
    hf_ffn,
    hf_rms,
)
from flashllm.model.families.gemma2 import gguf_scale, scaled_embedding
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import BESIDE_IMAGES, GEMMA_NAMES, GGUF_NAMES, IMAGES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind, QKNorm

DEFAULTS: dict[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
}
"""What a text_config leaves out if it is so (transformers, Gemma3TextConfig)."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's gemma3.* keys. Raises CorruptModel or UnsupportedModel."""
    window = keys.window("attention.sliding_window")
    far = LayerKind(gguf_rope(keys, "half"))
    near_theta = keys.positive("rope.freq_base_swa", 10000.0)
    near = LayerKind(gguf_rope(keys, "half", theta=near_theta), window)
    local = keys.sliding(6) if window else [False]
    norm = QKNorm(gguf_rms(keys), "shared")
    return gguf_config(
        keys,
        "gemma3",
        [near if slides else far for slides in local],
        attention=gguf_attention(keys, scale=gguf_scale(keys, 62), qk_norm=norm),
        ffn=gguf_ffn(keys, activation="gelu"),
        logit_soft_cap=keys.cap("final_logit_softcapping"),
        **scaled_embedding(keys.integer("embedding_length")),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json, or the text_config in it. Raises CorruptModel or UnsupportedModel."""
    if keys.has("text_config"):
        keys = keys.inner("text_config", DEFAULTS)
    if keys.flag("use_bidirectional_attention", False):
        raise UnsupportedModel("bidirectional attention is not supported: this model embeds texts")
    far = LayerKind(hf_rope(keys, theta=1e6))
    near_rope = hf_rope(keys, theta_key="rope_local_base_freq", layers="sliding_attention")
    near = LayerKind(near_rope, keys.window("sliding_window", absent=4096))
    period = keys.integer("sliding_window_pattern", 6)
    scale = keys.positive("query_pre_attn_scalar", 256) ** -0.5
    return hf_config(
        keys,
        "gemma3",
        [near if slides else far for slides in keys.sliding(lambda i: (i + 1) % period != 0)],
        attention=hf_attention(keys, scale=scale, qk_norm=QKNorm(hf_rms(keys), "shared")),
        ffn=hf_ffn(keys, activation=keys.activation("hidden_activation", "gelu_pytorch_tanh")),
        logit_soft_cap=keys.cap("final_logit_softcapping"),
        tied=True,
        **scaled_embedding(keys.integer("hidden_size")),
    )


FAMILY = Family(
    name="gemma3",
    hf_architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    config_from_hf=config_from_hf,
    hf_names=GEMMA_NAMES,
    gguf_architectures=("gemma3",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
    hf_prefixes=BESIDE_IMAGES,
    hf_unused=IMAGES,
)
