"""Qwen 2 and 2.5: a Llama with biases of query, key and value."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_attention, hf_config, sliding
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's qwen2.* keys. Raises CorruptModel or UnsupportedModel."""
    return gguf_config(keys, "qwen2", [LayerKind(gguf_rope(keys, "half"))])


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    attention = hf_attention(keys, qkv_bias=True, out_bias=False)
    return hf_config(keys, "qwen2", hf_kinds(keys), attention=attention)


def hf_kinds(keys: HFKeys) -> list[LayerKind]:
    """Layers of which, if use_sliding_window, those from max_window_layers on slide."""
    window = None
    if keys.flag("use_sliding_window", False):
        window = keys.window("sliding_window", absent=4096)
    first = keys.number("max_window_layers", 28)
    slides = keys.sliding(lambda i: window is not None and i >= first)
    return sliding(slides, hf_rope(keys), window)


FAMILY = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("qwen2",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
