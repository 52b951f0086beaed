"""OLMo 2 and 3: norms after the branches only, QK norms over all heads; OLMo 3 has a window."""

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
from flashllm.model.families.names import GEMMA_NAMES, GGUF_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import BlockSpec, LayerKind, QKNorm

AFTER = BlockSpec(pre_norm=False, post_norm=True)
PERIOD = 4
"""Every fourth layer of OLMo 3 sees everything, and alone has its positions scaled."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's olmo2.* keys. Raises CorruptModel or UnsupportedModel."""
    window, far = keys.window("attention.sliding_window"), LayerKind(gguf_rope(keys, "half"))
    theta = keys.positive("rope.freq_base_swa", keys.positive("rope.freq_base", 10000.0))
    near = LayerKind(gguf_rope(keys, "half", theta=theta), window)
    kinds = [near if slides else far for slides in keys.sliding(PERIOD)] if window else [far]
    attention = gguf_attention(keys, qk_norm=QKNorm(gguf_rms(keys), "joint"))
    return gguf_config(keys, "olmo2", kinds, attention=attention, block=AFTER)


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    attention = hf_attention(keys, qk_norm=QKNorm(hf_rms(keys), "joint"))
    kinds = _olmo3(keys) if keys.architecture == "Olmo3ForCausalLM" else [LayerKind(hf_rope(keys))]
    return hf_config(keys, "olmo2", kinds, attention=attention, block=AFTER)


def _olmo3(keys: HFKeys) -> list[LayerKind]:
    far = LayerKind(hf_rope(keys, theta=5e5))
    near_rope = hf_rope(keys, theta=5e5, layers="sliding_attention")
    near = LayerKind(near_rope, keys.window("sliding_window", absent=4096))
    return [near if slides else far for slides in keys.sliding(lambda i: (i + 1) % PERIOD != 0)]


FAMILY = Family(
    name="olmo2",
    hf_architectures=("Olmo2ForCausalLM", "Olmo3ForCausalLM"),
    config_from_hf=config_from_hf,
    hf_names=GEMMA_NAMES,
    gguf_architectures=("olmo2",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
