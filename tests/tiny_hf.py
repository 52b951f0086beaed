"""The tiny Llama of tiny.py as a Hugging Face folder: the same weights under Llama's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import tiny
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

DTYPES: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def write_hf(
    folder: Path,
    *,
    shards: int = 1,
    dtype: str = "F32",
    tied: bool = True,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    ffn: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    context: int = 128,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a tiny Llama into the new folder `folder` and return it.

    It is the model that tiny.write_gguf writes for the same arguments: only the order of q's and
    k's rows differs, as the two formats rotate other pairs. dtype is one of DTYPES and holds for
    every tensor; `config` overrides or adds keys of config.json.
    """
    folder.mkdir(parents=True)
    keys = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": _TORCH[dtype],
        **(config or {}),
    }
    _write_json(folder / "config.json", keys)
    weights = tiny.random_weights(layers, hidden, ffn, heads, kv_heads, vocab, seed, tied)
    tensors = {
        hf_name(name): in_halves(name, weight, hidden // heads).astype(DTYPES[dtype])
        for name, weight in weights.items()
    }
    write_weights(folder, tensors, shards)
    write_tokenizer(folder, vocab)
    return folder


def write_weights(folder: Path, tensors: Mapping[str, np.ndarray], shards: int = 1) -> None:
    """model.safetensors, or `shards` files of consecutive tensors and their index."""
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return
    names = np.array_split(np.array(list(tensors)), shards)
    weight_map = {}
    for number, held in enumerate(names, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({str(n): tensors[str(n)] for n in held}))
        weight_map |= {str(name): file for name in held}
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def write_tokenizer(folder: Path, vocab: int) -> None:
    """tokenizer.json, tokenizer_config.json with the chat template, generation_config.json."""
    known = tiny.tokenizer_metadata(vocab)
    tokens: list[str] = known["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in known["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(text, special=True, normalized=False) for text in tiny.SPECIALS]
    tokenizer.add_special_tokens(specials)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tiny.SPECIALS[1],
            "eos_token": tiny.SPECIALS[2],
            "unk_token": tiny.SPECIALS[0],
            "pad_token": tiny.SPECIALS[2],
            "chat_template": tiny.CHATML,
            "model_max_length": 128,
        },
    )
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": [2], "do_sample": True, "temperature": 0.6},
    )


def safetensors_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """A safetensors file of arrays in DTYPES, in their order."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in tensors.items():
        dtype = next(key for key, kind in DTYPES.items() if array.dtype == kind)
        offsets = [len(data), len(data) + array.nbytes]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += np.ascontiguousarray(array).tobytes()
    return with_header(json.dumps(entries).encode(), data)


def with_header(header: bytes, data: bytes) -> bytes:
    """A file of this JSON header, padded as the public library pads it, and `data`."""
    header = tiny.pad(header, 8).replace(b"\0", b" ")
    return len(header).to_bytes(8, "little") + header + data


def write_header(folder: Path, header: Any, data: bytes = bytes(16)) -> Path:
    """A folder of config.json and model.safetensors, of this header (JSON, or bytes) and data."""
    folder.mkdir(exist_ok=True)
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(with_header(text, data))
    (folder / "config.json").write_text("{}")
    return folder


def hf_name(gguf_name: str) -> str:
    """Hugging Face's name of a GGUF tensor of the Llama family."""
    stem = gguf_name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, stem = stem.split(".")
        return f"model.layers.{layer}.{_NAMES[stem]}.weight"
    return f"{_NAMES[stem]}.weight"


def in_halves(gguf_name: str, weight: np.ndarray, head_dim: int) -> np.ndarray:
    """`weight` with each head's even rows before its odd ones, if it is of queries or keys."""
    if not gguf_name.endswith(("attn_q.weight", "attn_k.weight")):
        return weight
    pairs = weight.reshape(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
