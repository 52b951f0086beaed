"""OPT: learned positions, layer norms, ReLU, biases everywhere. GGUF does not know it."""

from __future__ import annotations

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family, Slice
from flashllm.model.families.common import hf_attention, hf_config
from flashllm.model.families.keys import HFKeys
from flashllm.model.families.names import with_biases
from flashllm.model.specs import FFNSpec, LayerKind, NormSpec

OFFSET = 2
"""Position 0 has row 2 of the table: rows 0 and 1 were for padding."""


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    if keys.integer("word_embed_proj_dim", keys.integer("hidden_size")) != keys.integer(
        "hidden_size"
    ):
        raise UnsupportedModel("OPT with projected embeddings (OPT-350m) is not supported")
    for key, usual in (
        ("do_layer_norm_before", True),
        ("layer_norm_elementwise_affine", True),
        ("_remove_final_layer_norm", False),
    ):
        if keys.flag(key, usual) != usual:
            raise UnsupportedModel(f"OPT with {key} = {not usual} is not supported")
    bias = keys.flag("enable_bias", True)
    return hf_config(
        keys,
        "opt",
        [LayerKind()],
        norm=NormSpec("layer", 1e-5, bias=True),
        attention=hf_attention(keys, qkv_bias=bias, out_bias=bias),
        ffn=FFNSpec(
            keys.integer("ffn_dim"),
            keys.activation("activation_function", "relu"),
            gated=False,
            bias=bias,
        ),
        tied=True,
        learned_positions=True,
    )


def _positions(config: ModelConfig, layer: int) -> tuple[Slice, ...]:
    return (Slice("model.decoder.embed_positions.weight", OFFSET, config.context_length),)


_LAYER = {
    "attn_norm": "self_attn_layer_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_norm": "final_layer_norm",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
}

FAMILY = Family(
    name="opt",
    hf_architectures=("OPTForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=with_biases(
        {"embed": "model.decoder.embed_tokens", "output": "lm_head"}
        | {"output_norm": "model.decoder.final_layer_norm"}
        | {role: f"model.decoder.layers.{{i}}.{name}" for role, name in _LAYER.items()}
    )
    | {"positions": _positions},
    hf_prefixes={"decoder.": "model.decoder."},
)
