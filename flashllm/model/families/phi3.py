"""Phi-3, 3.5 and 4: fused matrices, LongRoPE, partial rotation (Phi-4-mini), a window."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_config
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.places import QKV, stacked
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind

GATE_UP = ("ffn_gate", "ffn_up")


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's phi3.* keys. Raises CorruptModel or UnsupportedModel.

    Its window is Microsoft's, in all layers; llama.cpp leaves it out (src/models/phi3.cpp).
    """
    kind = LayerKind(gguf_rope(keys, "half"), keys.window("attention.sliding_window"))
    return gguf_config(keys, "phi3", [kind])


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    return hf_config(keys, "phi3", [LayerKind(hf_rope(keys), keys.window("sliding_window"))])


FAMILY = Family(
    name="phi3",
    hf_architectures=("Phi3ForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES
    | stacked("model.layers.{i}.self_attn.qkv_proj", QKV)
    | stacked("model.layers.{i}.mlp.gate_up_proj", GATE_UP),
    gguf_architectures=("phi3",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES | stacked("blk.{i}.attn_qkv", QKV) | stacked("blk.{i}.ffn_up", GATE_UP),
)
