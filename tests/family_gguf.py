"""GGUF files of the tiny models, written by the public package as llama.cpp's converter does.

Facts from github.com/ggml-org/llama.cpp, conversion/*.py: keys, order of rotary pairs, layout of
fused matrices, what is added to Gemma's norms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny

ARCHITECTURES = {
    "LlamaForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "MistralForCausalLM": gguf.MODEL_ARCH.LLAMA,
    "SmolLM3ForCausalLM": gguf.MODEL_ARCH.SMOLLM3,
    "Qwen2ForCausalLM": gguf.MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": gguf.MODEL_ARCH.QWEN3,
    "GemmaForCausalLM": gguf.MODEL_ARCH.GEMMA,
    "Gemma2ForCausalLM": gguf.MODEL_ARCH.GEMMA2,
    "Gemma3ForCausalLM": gguf.MODEL_ARCH.GEMMA3,
    "Gemma3ForConditionalGeneration": gguf.MODEL_ARCH.GEMMA3,
    "Mistral3ForConditionalGeneration": gguf.MODEL_ARCH.LLAMA,
    "Phi3ForCausalLM": gguf.MODEL_ARCH.PHI3,
    "Olmo2ForCausalLM": gguf.MODEL_ARCH.OLMO2,
    "Olmo3ForCausalLM": gguf.MODEL_ARCH.OLMO2,
    "FalconForCausalLM": gguf.MODEL_ARCH.FALCON,
    "GPTNeoXForCausalLM": gguf.MODEL_ARCH.GPTNEOX,
    "StableLmForCausalLM": gguf.MODEL_ARCH.STABLELM,
    "GraniteForCausalLM": gguf.MODEL_ARCH.GRANITE,
    "NemotronForCausalLM": gguf.MODEL_ARCH.NEMOTRON,
}
INTERLEAVED = ("llama", "smollm3", "granite")
"""Architectures whose rows of query and key are stored so that rotary pairs are neighbours."""

INEXPRESSIBLE = {
    "opt": "no such architecture",
    "opt-no-bias": "no such architecture",
    "persimmon": "read from folders alone",
    "persimmon-plain": "read from folders alone",
    "llama-relu": "no key for the activation",
    "prosparse": "no key for the activation",
    "bamboo": "no key for the activation",
    "falcon-7b-relu": "no key for the activation",
    "llama-yarn-mscale": "no key for mscale",
    "smollm3-window": "no key for the layers",
    "qwen2-window": "no key for the layers",
    "qwen3-bias": "no key for the layers",
    "gemma2-scale": "no key for the scale",
    "falcon-rw": "no ALiBi",
    "falcon-rw-parallel": "no ALiBi",
    "neox-sequential": "no key for the activation",
}
"""Variants that GGUF has no words for."""


def write_family_gguf(
    path: Path, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> Path:
    """Write a model given as config.json and its tensors; returns path."""
    architecture = config["architectures"][0]
    config = {**config, **config.get("text_config", {})}
    kind = ARCHITECTURES[architecture]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind])
    _shape(writer, config)
    _attention(writer, config)
    _positions(writer, config)
    for key, value in tiny.tokenizer_metadata(config["vocab_size"]).items():
        _add(writer, key, value)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    for hf_name, tensor in _tensors(gguf.MODEL_ARCH_NAMES[kind], config, weights):
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        assert name, f"{architecture}: gguf has no name for {hf_name}"
        writer.add_tensor(name, np.ascontiguousarray(tensor, np.float32))
    for name, tensor in _factors(config):
        writer.add_tensor(name, np.array(tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    hidden = config["hidden_size"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config.get("intermediate_size", config.get("ffn_hidden_size")))
    if (eps := config.get("rms_norm_eps")) is not None:
        writer.add_layer_norm_rms_eps(eps)
    if (eps := _layer_norm_eps(config)) is not None:
        writer.add_layer_norm_eps(eps)
    if "use_parallel_residual" in config:
        writer.add_parallel_residual(config["use_parallel_residual"])
    if config["model_type"] == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])


def _layer_norm_eps(config: Mapping[str, Any]) -> float | None:
    names = ("layer_norm_eps", "layer_norm_epsilon", "norm_eps")
    return next((config[name] for name in names if name in config), None)


def _attention(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(_kv_heads(config))
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if (cap := config.get("attn_logit_softcapping")) is not None:
        writer.add_attn_logit_softcapping(cap)
    if (cap := config.get("final_logit_softcapping")) is not None:
        writer.add_final_logit_softcapping(cap)
    if (window := config.get("sliding_window")) is not None:
        writer.add_sliding_window(window)
        if "layer_types" in config:
            slides = [kind == "sliding_attention" for kind in config["layer_types"]]
            writer.add_sliding_window_pattern(slides)


def _positions(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    rope, local = _rope(config), config["rope_parameters"].get("sliding_attention")
    writer.add_rope_dimension_count(int(_head_dim(config) * rope.get("partial_rotary_factor", 1)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if local:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "attention_factor" in rope:
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
    elif kind == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        )


def _factors(config: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Divisors of rotary pairs, which GGUF keeps as tensors."""
    rope = _rope(config)
    if rope["rope_type"] == "longrope":
        yield "rope_factors_long.weight", rope["long_factor"]
        yield "rope_factors_short.weight", rope["short_factor"]
    if rope["rope_type"] == "llama3":
        dims, found = _head_dim(config), []
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        for i in range(0, dims, 2):
            wavelength = 2 * math.pi * rope["rope_theta"] ** (i / dims)
            fits = rope["original_max_position_embeddings"] / wavelength
            smooth = min(max((fits - low) / (high - low), 0.0), 1.0)
            found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        yield "rope_freqs.weight", found


def _tensors(
    architecture: str, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors to write, with names that the package knows."""
    heads, kv_heads, stacks = config["num_attention_heads"], _kv_heads(config), {}
    for name, tensor in weights.items():
        if name.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        usual = name.removeprefix("language_model.")
        if architecture in INTERLEAVED and ".self_attn.q_proj." in name:
            tensor = _neighbours(tensor, heads)
        if architecture in INTERLEAVED and ".self_attn.k_proj." in name:
            tensor = _neighbours(tensor, kv_heads)
        if architecture.startswith(("gemma", "nemotron")) and name.endswith("norm.weight"):
            tensor = tensor + 1
        if "query_key_value" in name:
            tensor = _ungrouped(tensor, heads, kv_heads)
        if "_layernorm.norms." in name:
            stem, _, rest = usual.partition(".norms.")
            stacks.setdefault(stem, {})[int(rest.removesuffix(".weight"))] = tensor
            continue
        yield usual, tensor
    for stem, parts in stacks.items():
        yield f"{stem}.weight", np.stack([parts[head] for head in range(len(parts))])


def _neighbours(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + half of every head beside each other."""
    halves = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _ungrouped(tensor: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """All queries, then all keys, then all values, from groups of some queries, a key, a value."""
    size = len(tensor) // (heads + 2 * kv_heads)
    groups = tensor.reshape(kv_heads, heads // kv_heads + 2, size, *tensor.shape[1:])
    parts = (groups[:, :-2], groups[:, -2], groups[:, -1])
    return np.concatenate([part.reshape(-1, *tensor.shape[1:]) for part in parts])


def _kv_heads(config: Mapping[str, Any]) -> int:
    if config["model_type"] == "falcon":
        if config["new_decoder_architecture"]:
            return config["num_kv_heads"]
        return 1 if config["multi_query"] else config["num_attention_heads"]
    return config.get("num_key_value_heads", config["num_attention_heads"])


def _head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return config["rope_parameters"].get("full_attention", config["rope_parameters"])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_string(key, value)
