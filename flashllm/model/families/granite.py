"""Granite 3: a Llama with four multipliers."""

from __future__ import annotations

from typing import Any

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import (
    gguf_attention,
    gguf_config,
    gguf_rms,
    hf_attention,
    hf_config,
    hf_rms,
)
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind, NormSpec


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's granite.* keys. Raises CorruptModel or UnsupportedModel.

    Files that say that positions were not trained have none (llama.cpp, src/models/granite.cpp).
    """
    turns = keys.flag("rope.scaling.finetuned", True)
    scale = keys.cap("attention.scale")
    return gguf_config(
        keys,
        "granite",
        [LayerKind(gguf_rope(keys, "interleaved") if turns else None)],
        attention=gguf_attention(keys, **({"scale": scale} if scale else {})),
        logit_scale=1 / keys.positive("logit_scale"),
        **divided_stream(
            gguf_rms(keys),
            keys.cap("residual_scale") or 1.0,
            keys.cap("embedding_scale") or 1.0,
        ),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    return hf_config(
        keys,
        "granite",
        [LayerKind(hf_rope(keys))],
        attention=hf_attention(keys, scale=keys.positive("attention_multiplier", 1.0)),
        logit_scale=1 / keys.positive("logits_scaling", 1.0),
        **divided_stream(
            hf_rms(keys),
            keys.positive("residual_multiplier", 1.0),
            keys.positive("embedding_multiplier", 1.0),
        ),
    )


def divided_stream(norm: NormSpec, residual: float, embedding: float) -> dict[str, Any]:
    """The fields that make branches add `residual` times their result.

    The stream x is kept as x / residual, to which branches add their result as it is. Norms do not
    see the difference once their eps is divided by the square.
    """
    norm = NormSpec("rms", norm.eps / residual / residual)
    return {"norm": norm, "embed_scale": embedding / residual}


FAMILY = Family(
    name="granite",
    hf_architectures=("GraniteForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("granite",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
