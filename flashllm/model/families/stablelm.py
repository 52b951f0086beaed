"""StableLM: layer norms and part of a head turns; 2-12B has parallel blocks and norms by head."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family, Place, Slice
from flashllm.model.families.common import (
    gguf_attention,
    gguf_config,
    gguf_layer_norm,
    hf_attention,
    hf_config,
)
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import BlockSpec, LayerKind, NormSpec, QKNorm


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's stablelm.* keys. Raises CorruptModel or UnsupportedModel.

    A block is parallel if the file has no norm before its feed-forward (llama.cpp, stablelm.cpp).
    """
    norm = gguf_layer_norm(keys)
    normed = "blk.0.attn_q_norm.weight" in keys.tensors
    parallel = "blk.0.ffn_norm.weight" not in keys.tensors
    return gguf_config(
        keys,
        "stablelm",
        [LayerKind(gguf_rope(keys, "half"))],
        norm=norm,
        attention=gguf_attention(keys, qk_norm=_head_norms(norm) if normed else None),
        block=BlockSpec(parallel=parallel, shared_norm=parallel),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    norm = NormSpec("layer", keys.positive("layer_norm_eps", keys.positive("norm_eps", 1e-5)), True)
    parallel = keys.flag("use_parallel_residual", False)
    return hf_config(
        keys,
        "stablelm",
        [LayerKind(hf_rope(keys, partial=keys.positive("rope_pct", 0.25)))],
        norm=norm,
        attention=hf_attention(
            keys,
            qkv_bias=keys.flag("use_qkv_bias", False),
            out_bias=False,
            qk_norm=_head_norms(norm) if keys.flag("qk_layernorm", False) else None,
        ),
        block=BlockSpec(parallel=parallel, shared_norm=parallel),
    )


def _head_norms(norm: NormSpec) -> QKNorm:
    return QKNorm(NormSpec("layer", norm.eps), "own")


def _by_head(name: str, role: str) -> Place:
    """A vector per head, each a tensor."""

    def find(config: ModelConfig, layer: int) -> tuple[Slice, ...]:
        a = config.attention
        heads = a.heads if role == "attn_q" else a.kv_heads
        return tuple(Slice(name.format(i=layer, head=head)) for head in range(heads))

    return find


_NORMS = "model.layers.{{i}}.self_attn.{0}_layernorm.norms.{{head}}.weight"

FAMILY = Family(
    name="stablelm",
    hf_architectures=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES
    | {f"attn_{x}_norm": _by_head(_NORMS.format(x), f"attn_{x}") for x in ("q", "k")},
    gguf_architectures=("stablelm",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
)
