"""The names that most checkpoints give their tensors, by role."""

from __future__ import annotations

from flashllm.model.families.base import Place

_LAYER_GGUF = {
    "attn_norm": "attn_norm",
    "attn_q": "attn_q",
    "attn_k": "attn_k",
    "attn_v": "attn_v",
    "attn_q_norm": "attn_q_norm",
    "attn_k_norm": "attn_k_norm",
    "attn_out": "attn_output",
    "attn_post_norm": "post_attention_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_down": "ffn_down",
    "ffn_post_norm": "post_ffw_norm",
}

_LAYER_LLAMA = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def with_biases(stems: dict[str, str]) -> dict[str, str | Place]:
    """role -> name.weight, and role_bias -> name.bias, of names without their ends."""
    weights: dict[str, str | Place] = {role: f"{stem}.weight" for role, stem in stems.items()}
    return weights | {f"{role}_bias": f"{stem}.bias" for role, stem in stems.items()}


GGUF_NAMES = with_biases(
    {"embed": "token_embd", "positions": "position_embd", "output": "output"}
    | {"output_norm": "output_norm"}
    | {role: f"blk.{{i}}.{name}" for role, name in _LAYER_GGUF.items()}
)
"""llama.cpp's names, the same for every architecture (gguf-py/gguf/constants.py)."""

LLAMA_NAMES = with_biases(
    {"embed": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
    | {role: f"model.layers.{{i}}.{name}" for role, name in _LAYER_LLAMA.items()}
)
"""Hugging Face's names of the Llama family, which others took over."""

GEMMA_NAMES = LLAMA_NAMES | with_biases(
    {
        "attn_post_norm": "model.layers.{i}.post_attention_layernorm",
        "ffn_norm": "model.layers.{i}.pre_feedforward_layernorm",
        "ffn_post_norm": "model.layers.{i}.post_feedforward_layernorm",
    }
)
"""Those of blocks with norms before and after, or after only."""

BESIDE_IMAGES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
"""Beginnings of a language model's names where it lies beside an image encoder, to the usual."""

IMAGES = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
"""What belongs to that encoder."""
