"""Falcon: 7B and 40B with parallel blocks, RW with ALiBi; query, key and value in one matrix."""

from __future__ import annotations

from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family, Place, Slice
from flashllm.model.families.common import (
    gguf_attention,
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

CONTEXT = 2048
"""Of those that do not state one (transformers, FalconConfig)."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's falcon.* keys. Raises CorruptModel or UnsupportedModel."""
    return gguf_config(
        keys,
        "falcon",
        [LayerKind(gguf_rope(keys, "half"))],
        norm=gguf_layer_norm(keys),
        attention=gguf_attention(keys),
        ffn=gguf_ffn(keys, activation="gelu_erf", gated=False),
        block=BlockSpec(parallel=True, shared_norm="blk.0.attn_norm_2.weight" not in keys.tensors),
    )


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    new, bias = keys.flag("new_decoder_architecture", False), keys.flag("bias", False)
    parallel = new or keys.flag("parallel_attn", True)
    norms = keys.integer("num_ln_in_parallel_attn", 2 if new else 1)
    alibi = keys.flag("alibi", False)
    if not keys.flag("rotary", not alibi) and not alibi:
        raise UnsupportedModel("a Falcon with neither rotary positions nor ALiBi is not supported")
    hidden, heads = keys.integer("hidden_size"), keys.heads
    kv_heads = 1 if not new and keys.flag("multi_query", True) else heads
    attention: dict[str, Any] = {"qkv_bias": bias, "out_bias": bias}
    attention["kv_heads"] = keys.integer("num_kv_heads", heads) if new else kv_heads
    if alibi:
        attention["alibi"] = tuple(keys.head_dim**-0.5 * slope for slope in slopes(heads))
    return hf_config(
        keys,
        "falcon",
        [LayerKind(None if alibi else hf_rope(keys))],
        norm=NormSpec("layer", keys.positive("layer_norm_epsilon", 1e-5), bias=True),
        attention=hf_attention(keys, **attention),
        ffn=FFNSpec(
            keys.integer("ffn_hidden_size", 4 * hidden),
            keys.activation("activation", "gelu"),
            gated=False,
            bias=bias,
        ),
        context=CONTEXT,
        tied=True,
        block=BlockSpec(parallel=parallel, shared_norm=parallel and norms == 1),
    )


def slopes(heads: int) -> list[float]:
    """ALiBi's slopes: 2^(-8 i / n), between them those of 2 n heads if n is no power of two.

    (Press et al., 2022, arXiv:2108.12409, section 3; Falcon scales them with the scores.)
    """
    power = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-8 * (i + 0.5) / power) for i in range(heads - power)]
    return first + between


def _norm(pair: str, single: str, stem: str, end: str) -> Place:
    """A norm called `pair` where a parallel block has two, else `single`."""

    def find(config: ModelConfig, layer: int) -> tuple[Slice, ...]:
        both = config.block.parallel and not config.block.shared_norm
        return (Slice(f"{stem.format(i=layer)}.{pair if both else single}.{end}"),)

    return find


def _norms(stem: str, attn: tuple[str, str], ffn: tuple[str, str]) -> dict[str, str | Place]:
    ends = {"": "weight", "_bias": "bias"}
    found: dict[str, str | Place] = {
        f"attn_norm{role}": _norm(*attn, stem, end) for role, end in ends.items()
    }
    return found | {f"ffn_norm{role}": _norm(*ffn, stem, end) for role, end in ends.items()}


_LAYER = {
    "attn_out": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}

FAMILY = Family(
    name="falcon",
    hf_architectures=("FalconForCausalLM", "RWForCausalLM"),
    config_from_hf=config_from_hf,
    hf_names=with_biases(
        {"embed": "transformer.word_embeddings", "output": "lm_head"}
        | {"output_norm": "transformer.ln_f"}
        | {role: f"transformer.h.{{i}}.{name}" for role, name in _LAYER.items()}
    )
    | by_head("transformer.h.{i}.self_attention.query_key_value")
    | _norms(
        "transformer.h.{i}",
        ("ln_attn", "input_layernorm"),
        ("ln_mlp", "post_attention_layernorm"),
    ),
    gguf_architectures=("falcon",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES
    | stacked("blk.{i}.attn_qkv", QKV)
    | _norms("blk.{i}", ("attn_norm_2", "attn_norm"), ("attn_norm", "ffn_norm")),
)
