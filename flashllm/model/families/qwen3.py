"""Qwen 3: a Llama whose queries and keys are normed, all heads with the same weights."""

from __future__ import annotations

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
from flashllm.model.families.qwen2 import hf_kinds
from flashllm.model.families.rope import gguf_rope
from flashllm.model.specs import LayerKind, QKNorm


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's qwen3.* keys. Raises CorruptModel or UnsupportedModel."""
    attention = gguf_attention(keys, qk_norm=QKNorm(gguf_rms(keys), "shared"))
    return gguf_config(keys, "qwen3", [LayerKind(gguf_rope(keys, "half"))], attention=attention)


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    attention = hf_attention(keys, qk_norm=QKNorm(hf_rms(keys), "shared"))
    return hf_config(keys, "qwen3", hf_kinds(keys), attention=attention)


FAMILY = Family(
    name="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("qwen3",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
