"""GPT-NeoX and Pythia: layer norms, biases, part of a head turns; blocks parallel or not."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import (
    gguf_config,
    gguf_ffn,
    gguf_layer_norm,
    hf_attention,
    hf_config,
)
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, with_biases
from flashllm.model.families.places import QKV, by_head, stacked
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import BlockSpec, FFNSpec, LayerKind, NormSpec


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's gptneox.* keys. Raises CorruptModel or UnsupportedModel.

    The file does not name the activation; all but NeoX-20B were trained with the exact GELU.
    """
    return gguf_config(
        keys,
        "gpt_neox",
        [LayerKind(gguf_rope(keys, "half"))],
        norm=gguf_layer_norm(keys),
        ffn=gguf_ffn(keys, activation="gelu_erf", gated=False),
        block=BlockSpec(parallel=keys.flag("use_parallel_residual", True)),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    bias = keys.flag("attention_bias", True)
    rope = hf_rope(keys, theta_key="rotary_emb_base", partial=keys.positive("rotary_pct", 0.25))
    return hf_config(
        keys,
        "gpt_neox",
        [LayerKind(rope)],
        norm=NormSpec("layer", keys.positive("layer_norm_eps", 1e-5), bias=True),
        attention=hf_attention(keys, qkv_bias=bias, out_bias=bias),
        ffn=FFNSpec(
            keys.integer("intermediate_size"),
            keys.activation(default="gelu"),
            gated=False,
            bias=True,
        ),
        block=BlockSpec(parallel=keys.flag("use_parallel_residual", True)),
    )


_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_out": "attention.dense",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}

FAMILY = Family(
    name="gpt_neox",
    hf_architectures=("GPTNeoXForCausalLM",),
    config_from_hf=config_from_hf,
    hf_names=with_biases(
        {"embed": "gpt_neox.embed_in", "output": "embed_out"}
        | {"output_norm": "gpt_neox.final_layer_norm"}
        | {role: f"gpt_neox.layers.{{i}}.{name}" for role, name in _LAYER.items()}
    )
    | by_head("gpt_neox.layers.{i}.attention.query_key_value"),
    gguf_architectures=("gptneox",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES | stacked("blk.{i}.attn_qkv", QKV),
    hf_prefixes={"lm_head.": "embed_out."},
    hf_unused=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
)
