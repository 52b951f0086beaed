"""Llama: RMSNorm, rotary positions, grouped-query attention, gated SiLU feed-forward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family, integer, number


def config_from_gguf(metadata: Mapping[str, Any], has_output: bool) -> ModelConfig:
    """Translate GGUF's llama.* keys. Raises CorruptModel or UnsupportedModel."""
    if metadata.get("llama.rope.scaling.type", "none") != "none":
        raise UnsupportedModel(
            f"RoPE scaling {metadata['llama.rope.scaling.type']!r} is not supported yet"
        )
    if metadata.get("llama.expert_count", 0):
        raise UnsupportedModel("mixture-of-experts models are not supported yet")
    hidden = integer(metadata, "llama.embedding_length")
    heads = integer(metadata, "llama.attention.head_count")
    head_dim = integer(metadata, "llama.attention.key_length", max(hidden // heads, 1))
    rotary = integer(metadata, "llama.rope.dimension_count", head_dim)
    if rotary != head_dim:
        raise UnsupportedModel(f"partial rotary ({rotary} of {head_dim}) is not supported yet")
    tokens = metadata.get("tokenizer.ggml.tokens")
    known = len(tokens) if isinstance(tokens, list) and tokens else None
    return ModelConfig(
        family="llama",
        hidden_size=hidden,
        ffn_size=integer(metadata, "llama.feed_forward_length"),
        n_layers=integer(metadata, "llama.block_count"),
        n_heads=heads,
        n_kv_heads=integer(metadata, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab_size=integer(metadata, "llama.vocab_size", known),
        context_length=integer(metadata, "llama.context_length"),
        rope_theta=number(metadata, "llama.rope.freq_base", 10000.0),
        rope_style="interleaved",
        norm_eps=number(metadata, "llama.attention.layer_norm_rms_epsilon"),
        tied_head=not has_output,
    )


FAMILY = Family(
    name="llama",
    architectures=("llama",),
    gguf_names={
        "embed": "token_embd.weight",
        "output": "output.weight",
        "output_norm": "output_norm.weight",
    },
    gguf_layer_names={
        "attn_norm": "blk.{i}.attn_norm.weight",
        "attn_q": "blk.{i}.attn_q.weight",
        "attn_k": "blk.{i}.attn_k.weight",
        "attn_v": "blk.{i}.attn_v.weight",
        "attn_out": "blk.{i}.attn_output.weight",
        "ffn_norm": "blk.{i}.ffn_norm.weight",
        "ffn_gate": "blk.{i}.ffn_gate.weight",
        "ffn_up": "blk.{i}.ffn_up.weight",
        "ffn_down": "blk.{i}.ffn_down.weight",
    },
    config_from_gguf=config_from_gguf,
)
