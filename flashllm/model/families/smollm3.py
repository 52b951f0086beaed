"""SmolLM3: a Llama in which every fourth layer knows no positions (NoPE)."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_config
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind

INTERVAL = 4
"""Every so many layers one has no rotary positions; GGUF does not say (llama.cpp, smollm3.cpp)."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's smollm3.* keys. Raises CorruptModel or UnsupportedModel."""
    rope = gguf_rope(keys, "interleaved")
    turns = [(i + 1) % INTERVAL != 0 for i in range(keys.layers)]
    return gguf_config(keys, "smollm3", [LayerKind(rope if yes else None) for yes in turns])


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    rope, turns = hf_rope(keys, theta=2e6), _turns(keys)
    slides = keys.flag("use_sliding_window", False)
    window = keys.window("sliding_window") if slides else None
    windows = [window if yes else None for yes in keys.sliding(lambda i: not turns[i])]
    kinds = [
        LayerKind(rope if yes else None, size) for yes, size in zip(turns, windows, strict=True)
    ]
    return hf_config(keys, "smollm3", kinds, tied=True)


def _turns(keys: HFKeys) -> list[bool]:
    """Which layers have rotary positions: no_rope_layers says 1 for those that do."""
    listed = keys.get("no_rope_layers")
    if listed is None:
        interval = keys.integer("no_rope_layer_interval", INTERVAL)
        return [(i + 1) % interval != 0 for i in range(keys.layers)]
    if len(keys.numbers("no_rope_layers")) != keys.layers:
        raise keys.wrong("no_rope_layers", listed, f"{keys.layers} of 0 and 1")
    return [bool(value) for value in listed]


FAMILY = Family(
    name="smollm3",
    hf_architectures=("SmolLM3ForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("smollm3",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
