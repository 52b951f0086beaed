"""Llama 1 to 3.3 and what shares its blocks: SmolLM2, Yi, Mistral with its sliding window."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_config
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind

MISTRAL = "MistralForCausalLM"
MISTRAL_WINDOW = 4096
"""Mistral's window where config.json does not speak of one (transformers, MistralConfig)."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's llama.* keys. Raises CorruptModel or UnsupportedModel."""
    rope = gguf_rope(keys, "interleaved")
    return gguf_config(keys, "llama", [LayerKind(rope, keys.window("attention.sliding_window"))])


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    window = None
    if keys.architecture == MISTRAL:
        window = keys.window("sliding_window", absent=MISTRAL_WINDOW)
    return hf_config(keys, "llama", [LayerKind(hf_rope(keys), window)])


FAMILY = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM", "LLaMAForCausalLM", MISTRAL),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("llama",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
