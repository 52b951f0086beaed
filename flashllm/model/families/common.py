"""Configs as most families state them; a family replaces what it does otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.rope import gguf_context, hf_context
from flashllm.model.specs import AttentionSpec, FFNSpec, LayerKind, NormSpec, RopeSpec


def gguf_config(
    keys: GGUFKeys,
    family: str,
    kinds: Iterable[LayerKind],
    *,
    norm: NormSpec | None = None,
    attention: AttentionSpec | None = None,
    ffn: FFNSpec | None = None,
    **fields: Any,
) -> ModelConfig:
    """The config of a pre-norm, gated SiLU, RMSNorm model, but for what is said otherwise.

    kinds: that of every layer, or the one of all. A bias is there if its tensor is.
    """
    return ModelConfig(
        family=family,
        hidden_size=keys.integer("embedding_length"),
        vocab_size=keys.vocab_size,
        context_length=gguf_context(keys),
        norm=norm or gguf_rms(keys),
        attention=attention or gguf_attention(keys),
        ffn=ffn or gguf_ffn(keys),
        tied_head="output.weight" not in keys.tensors,
        **_by_layer(kinds, keys.layers),
        **fields,
    )


def gguf_rms(keys: GGUFKeys) -> NormSpec:
    """RMS norms."""
    return NormSpec("rms", keys.positive("attention.layer_norm_rms_epsilon"))


def gguf_layer_norm(keys: GGUFKeys) -> NormSpec:
    """Layer norms, with biases if the file has them."""
    bias = "output_norm.bias" in keys.tensors
    return NormSpec("layer", keys.positive("attention.layer_norm_epsilon"), bias)


def gguf_attention(keys: GGUFKeys, **parts: Any) -> AttentionSpec:
    """Attention; `parts` are fields said otherwise."""
    heads, head_dim = keys.heads, keys.head_dim
    if keys.integer("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModel("keys and values of different sizes are not supported")
    fused, single = "blk.0.attn_qkv.bias", "blk.0.attn_q.bias"
    spec = AttentionSpec(
        heads=heads,
        kv_heads=keys.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=fused in keys.tensors or single in keys.tensors,
        out_bias="blk.0.attn_output.bias" in keys.tensors,
    )
    return dataclasses.replace(spec, **parts)


def gguf_ffn(keys: GGUFKeys, **parts: Any) -> FFNSpec:
    """Gated SiLU; `parts` are fields said otherwise."""
    bias = "blk.0.ffn_down.bias" in keys.tensors
    spec = FFNSpec(keys.integer("feed_forward_length"), "silu", bias=bias)
    return dataclasses.replace(spec, **parts)


def hf_config(
    keys: HFKeys,
    family: str,
    kinds: Iterable[LayerKind],
    *,
    norm: NormSpec | None = None,
    attention: AttentionSpec | None = None,
    ffn: FFNSpec | None = None,
    context: int | None = None,
    tied: bool = False,
    **fields: Any,
) -> ModelConfig:
    """As gguf_config, of Hugging Face's Llama-like config.json.

    context and tied hold where max_position_embeddings and tie_word_embeddings are not said; tied:
    whether the head is the embedding.
    """
    return ModelConfig(
        family=family,
        hidden_size=keys.integer("hidden_size"),
        vocab_size=keys.integer("vocab_size"),
        context_length=hf_context(keys, context),
        norm=norm or hf_rms(keys),
        attention=attention or hf_attention(keys),
        ffn=ffn or hf_ffn(keys),
        tied_head=keys.flag("tie_word_embeddings", tied),
        **_by_layer(kinds, keys.layers),
        **fields,
    )


def hf_rms(keys: HFKeys) -> NormSpec:
    """RMS norms."""
    return NormSpec("rms", keys.positive("rms_norm_eps", 1e-6))


def hf_attention(keys: HFKeys, **parts: Any) -> AttentionSpec:
    """Attention, with biases if attention_bias says so; `parts` are fields said otherwise."""
    heads, head_dim = keys.heads, keys.head_dim
    bias = keys.flag("attention_bias", False)
    spec = AttentionSpec(
        heads=heads,
        kv_heads=keys.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        scale=head_dim**-0.5,
        qkv_bias=bias,
        out_bias=bias,
    )
    return dataclasses.replace(spec, **parts)


def hf_ffn(keys: HFKeys, **parts: Any) -> FFNSpec:
    """Gated feed-forward, with biases if mlp_bias says so; `parts` are fields said otherwise.

    "fatrelu" passes what exceeds hidden_act_param (huggingface.co/SparseLLM/prosparse-llama-2-7b,
    modeling_sparsellama.py).
    """
    size, bias = keys.integer("intermediate_size"), keys.flag("mlp_bias", False)
    if keys.get("hidden_act") == "fatrelu":
        spec = FFNSpec(size, "relu", bias=bias, threshold=keys.number("hidden_act_param"))
    else:
        spec = FFNSpec(size, keys.activation(default="silu"), bias=bias)
    return dataclasses.replace(spec, **parts)


def sliding(layers: list[bool], rope: RopeSpec, window: int | None) -> list[LayerKind]:
    """Kinds of layers of which some slide and all turn alike."""
    return [LayerKind(rope, window if slides else None) for slides in layers]


def _by_layer(kinds: Iterable[LayerKind], layers: int) -> dict[str, Any]:
    """The fields kinds and layers of a config whose layers are of these kinds, or all of one."""
    given = tuple(kinds)
    given = given * layers if len(given) == 1 else given
    distinct = tuple(dict.fromkeys(given))
    return {"kinds": distinct, "layers": tuple(distinct.index(kind) for kind in given)}
