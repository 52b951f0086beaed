"""The tiny models of make_family_goldens.py: every family, and every part that it may have."""

from __future__ import annotations

from typing import Any

VOCAB = 300
WINDOW = 16

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


def _scaled(kind: str, theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **parameters}}


def _factors(pairs: int, first: float, last: float) -> list[float]:
    return [first + (last - first) * i / (pairs - 1) for i in range(pairs)]


_LONG = {
    "short_factor": _factors(8, 1.0, 1.5),
    "long_factor": _factors(8, 1.0, 9.0),
}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
_FALCON = {"num_key_value_heads": None, "intermediate_size": None}
_OPT = {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": None}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "llama-linear": ("Llama", _scaled("linear", factor=4.0)),
    "llama-dynamic": ("Llama", _scaled("dynamic", factor=4.0)),
    "llama-llama3": (
        "Llama",
        _scaled(
            "llama3",
            theta=500.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=32,
        ),
    ),
    "llama-yarn": ("Llama", _scaled("yarn", **_YARN)),
    "llama-yarn-mscale": (
        "Llama",
        _scaled("yarn", **_YARN, mscale=0.7, mscale_all_dim=1.2, beta_fast=8.0, beta_slow=0.5),
    ),
    "llama-yarn-attention": ("Llama", _scaled("yarn", **_YARN, attention_factor=1.3)),
    "llama-relu": ("Llama", {"hidden_act": "relu"}),
    "prosparse": ("SparseLlama", {"hidden_act": "fatrelu", "hidden_act_param": 0.1}),
    "bamboo": ("Bamboo", {"hidden_act": "relu", "sliding_window": WINDOW}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "smollm3": ("SmolLM3", {**_scaled("default", 5e6), "pad_token_id": 3}),
    "smollm3-window": (
        "SmolLM3",
        {
            "no_rope_layers": [1, 0, 0, 1],
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    "qwen2-yarn": ("Qwen2", _scaled("yarn", 1e6, **_YARN)),
    "qwen3": ("Qwen3", {"head_dim": 32, "rms_norm_eps": 1e-6}),
    "qwen3-bias": (
        "Qwen3",
        {
            "head_dim": 32,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma2-scale": (
        "Gemma2",
        {
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 40,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 32,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "gemma3-local": (
        "Gemma3",
        {
            "head_dim": 16,
            "num_hidden_layers": 6,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 16,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma3-vision": (
        "Gemma3ForConditionalGeneration",
        {"head_dim": 32, "sliding_window": WINDOW, "query_pre_attn_scalar": 32},
    ),
    "mistral3-vision": (
        "Mistral3ForConditionalGeneration",
        {"head_dim": 32, "sliding_window": None, "rope_theta": 1e9},
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "num_key_value_heads": 4}),
    "phi3-long-short": (
        "Phi3",
        {**_scaled("longrope", **_LONG), "original_max_position_embeddings": 64},
    ),
    "phi3-long": (
        "Phi3",
        {**_scaled("longrope", **_LONG), "original_max_position_embeddings": 32},
    ),
    "phi4-partial": (
        "Phi3",
        {
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 32,
            **_scaled(
                "longrope",
                short_factor=_factors(6, 1.0, 1.2),
                long_factor=_factors(6, 1.0, 5.0),
                partial_rotary_factor=0.75,
            ),
        },
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {
            "sliding_window": WINDOW,
            "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "rope_theta": 5e5, **_YARN},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
    ),
    "opt": ("OPT", _OPT),
    "opt-no-bias": (
        "OPT",
        {**_OPT, "enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
    "falcon-7b": ("Falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon-7b-relu": (
        "Falcon",
        {**_FALCON, "multi_query": True, "parallel_attn": True, "activation": "relu"},
    ),
    "falcon-40b": ("Falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": (
        "Falcon",
        {
            **_FALCON,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 96,
            "tie_word_embeddings": False,
        },
    ),
    "falcon-rw": (
        "Falcon",
        {**_FALCON, "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    ),
    "falcon-rw-parallel": ("Falcon", {**_FALCON, "alibi": True, "multi_query": False}),
    "neox": ("GPTNeoX", {"num_key_value_heads": None, **_scaled("default")}),
    "neox-sequential": (
        "GPTNeoX",
        {
            "num_key_value_heads": None,
            "use_parallel_residual": False,
            "hidden_act": "gelu_new",
            "attention_bias": False,
            **_scaled("default", partial_rotary_factor=1.0),
        },
    ),
    "stablelm": ("StableLm", {**_scaled("default", partial_rotary_factor=0.25)}),
    "stablelm-bias": (
        "StableLm",
        {"use_qkv_bias": True, **_scaled("default", partial_rotary_factor=0.5)},
    ),
    "stablelm-12b": (
        "StableLm",
        {
            "use_parallel_residual": True,
            "qk_layernorm": True,
            **_scaled("default", partial_rotary_factor=0.25),
        },
    ),
    "granite": (
        "Granite",
        {
            "tie_word_embeddings": True,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
            "rms_norm_eps": 1e-5,
        },
    ),
    "persimmon": ("Persimmon", {"num_key_value_heads": None}),
    "persimmon-plain": (
        "Persimmon",
        {
            "num_key_value_heads": None,
            "qk_layernorm": False,
            **_scaled("default", 25000.0, partial_rotary_factor=0.25),
        },
    ),
    "nemotron": ("Nemotron", {}),
    "nemotron-bias": (
        "Nemotron",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 32,
            **_scaled("default", partial_rotary_factor=0.25),
        },
    ),
}
"""Name: the beginning of transformers' class names, and what its config says otherwise."""


def config_values(name: str) -> tuple[str, dict[str, Any]]:
    """The class name's beginning and all arguments of the config of a variant."""
    kind, changes = VARIANTS[name]
    values = {**_SHAPE, **changes}
    dropped = {key for key in _FALCON if values.get(key, 0) is None}
    return kind, {key: value for key, value in values.items() if key not in dropped}
