"""Gemma 2: norms before and after, capped scores and logits, every second layer local."""

from __future__ import annotations

from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import (
    gguf_attention,
    gguf_config,
    gguf_ffn,
    hf_attention,
    hf_config,
    hf_ffn,
    sliding,
)
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GEMMA_NAMES, GGUF_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import BlockSpec

SANDWICH = BlockSpec(pre_norm=True, post_norm=True)
WINDOW = 4096


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's gemma2.* keys. Raises CorruptModel or UnsupportedModel."""
    window = keys.window("attention.sliding_window", absent=WINDOW)
    return gguf_config(
        keys,
        "gemma2",
        sliding(keys.sliding(2), gguf_rope(keys, "half"), window),
        attention=gguf_attention(
            keys,
            scale=gguf_scale(keys, 46),
            soft_cap=keys.cap("attn_logit_softcapping", absent=50.0),
        ),
        ffn=gguf_ffn(keys, activation="gelu"),
        logit_soft_cap=keys.cap("final_logit_softcapping", absent=30.0),
        **scaled_embedding(keys.integer("embedding_length")),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    if keys.flag("use_bidirectional_attention", False):
        raise UnsupportedModel("bidirectional attention is not supported: this model embeds texts")
    window = keys.window("sliding_window", absent=WINDOW)
    return hf_config(
        keys,
        "gemma2",
        sliding(keys.sliding(lambda i: i % 2 == 0), hf_rope(keys), window),
        attention=hf_attention(
            keys,
            scale=keys.positive("query_pre_attn_scalar", 256) ** -0.5,
            soft_cap=keys.cap("attn_logit_softcapping", absent=50.0),
        ),
        ffn=hf_ffn(keys, activation=keys.activation("hidden_activation", "gelu_pytorch_tanh")),
        logit_soft_cap=keys.cap("final_logit_softcapping", absent=30.0),
        tied=True,
        **scaled_embedding(keys.integer("hidden_size")),
    )


def gguf_scale(keys: GGUFKeys, layers_of_27b: int) -> float:
    """The factor of scores, which GGUF does not state: the 27B alone divides otherwise.

    (github.com/ggml-org/llama.cpp, src/models/gemma2.cpp and gemma3.cpp.)
    """
    if keys.layers != layers_of_27b:
        return float(keys.head_dim**-0.5)
    return float(max(keys.integer("embedding_length") // keys.heads, 1) ** -0.5)


def scaled_embedding(hidden: int) -> dict[str, Any]:
    """The fields of every Gemma."""
    return {"embed_scale": hidden**0.5, "block": SANDWICH}


FAMILY = Family(
    name="gemma2",
    hf_architectures=("Gemma2ForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=GEMMA_NAMES,
    gguf_architectures=("gemma2",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
    hf_norm_offset=1.0,
)
