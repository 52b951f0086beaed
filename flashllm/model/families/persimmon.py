"""Persimmon: squared ReLU, layer norms, norms of queries and keys, half of a head turns."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import hf_attention, hf_config
from flashllm.model.families.keys import HFKeys
from flashllm.model.families.names import with_biases
from flashllm.model.families.places import by_head
from flashllm.model.families.rope import hf_rope
from flashllm.model.specs import FFNSpec, LayerKind, NormSpec, QKNorm

THETA = 25000.0
"""Where config.json states no rope_theta (transformers 4, PersimmonConfig)."""


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    norm = NormSpec("layer", keys.positive("layer_norm_eps", 1e-5), bias=True)
    normed = keys.flag("qk_layernorm", True)
    return hf_config(
        keys,
        "persimmon",
        [LayerKind(hf_rope(keys, theta=THETA, partial=0.5))],
        norm=norm,
        attention=hf_attention(
            keys,
            kv_heads=keys.heads,
            qkv_bias=True,
            out_bias=True,
            qk_norm=QKNorm(norm, "shared") if normed else None,
        ),
        ffn=FFNSpec(
            keys.integer("intermediate_size"),
            keys.activation(default="relu2"),
            gated=False,
            bias=True,
        ),
    )


_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "attn_out": "self_attn.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}

FAMILY = Family(
    name="persimmon",
    hf_architectures=("PersimmonForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=with_biases(
        {"embed": "model.embed_tokens", "output": "lm_head"}
        | {"output_norm": "model.final_layernorm"}
        | {role: f"model.layers.{{i}}.{name}" for role, name in _LAYER.items()}
    )
    | by_head("model.layers.{i}.self_attn.query_key_value"),
)
