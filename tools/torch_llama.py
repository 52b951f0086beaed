"""A GGUF Llama as a float32 Hugging Face model: the trusted arithmetic that goldens come from.

Weights are dequantised by the public gguf package. GGUF stores query and key rows so that the two
halves of a head interleave (pairs 2i, 2i+1 rotate together); Hugging Face rotates element i with
i + head_dim / 2, so those rows are put back in its order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def load(path: Path) -> LlamaForCausalLM:
    """The model in the GGUF at `path`, in float32, with the plain ("eager") attention."""
    reader = gguf.GGUFReader(path)
    weights = {
        tensor.name.removesuffix(".weight"): gguf.dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
    }
    config = llama_config(reader, tied="output" not in weights)
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state_dict(weights, config), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"} or (missing and "output" in weights):
        raise SystemExit(f"{path}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model.float().eval()


def llama_config(reader: gguf.GGUFReader, tied: bool) -> LlamaConfig:
    """Hugging Face's description of the model, from GGUF metadata."""

    def get(key: str) -> Any:
        return reader.fields[f"llama.{key}"].contents()

    return LlamaConfig(
        vocab_size=get("vocab_size"),
        hidden_size=get("embedding_length"),
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=get("attention.head_count"),
        num_key_value_heads=get("attention.head_count_kv"),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base")},
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )


def state_dict(weights: dict[str, np.ndarray], config: LlamaConfig) -> dict[str, torch.Tensor]:
    """Hugging Face's names and row order for GGUF's `weights` (names without ".weight")."""
    state = {}
    for name, array in weights.items():
        if name in TOP_NAMES:
            target = TOP_NAMES[name]
        else:
            _, layer, part = name.split(".")
            target = f"model.layers.{layer}.{LAYER_NAMES[part]}"
            if part == "attn_q":
                array = halves(array, config.num_attention_heads)
            elif part == "attn_k":
                array = halves(array, config.num_key_value_heads)
        state[f"{target}.weight"] = torch.from_numpy(np.array(array, dtype=np.float32))
    return state


def halves(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of interleaved pairs as two halves per head: undoes `permute` of llama.cpp's converter.

    rows: [n_heads * head_dim, cols].
    """
    pairs = rows.reshape(n_heads, -1, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def window_logits(model: LlamaForCausalLM, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, vocab] after each of `tokens` int32 [T], read from an empty cache."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.inference_mode():
        logits: np.ndarray = model(input_ids=ids, use_cache=False).logits[0].numpy()
    return logits
