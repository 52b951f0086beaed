"""Synthetic models as GGUF files, for the engines that flashllm is measured against."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import synthetic_tokenizer
from synthetic_shapes import Model, Shape, expert_size, head_dim
from synthetic_weights import Bytes, Weights

from flashllm.convert.dtypes import HEAD_DTYPE
from flashllm.flash.output import OutputFile

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8": gguf.GGMLQuantizationType.Q8_0,
    "q4": gguf.GGMLQuantizationType.Q4_0,
    "q4m": gguf.GGMLQuantizationType.Q4_1,
}
FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4": gguf.LlamaFileType.MOSTLY_Q4_0,
    "q4m": gguf.LlamaFileType.MOSTLY_Q4_1,
}
PIECE = 1 << 22  # bytes made at once


def write_gguf(path: Path, model: Model, weights: Weights, dtype: str, pure: bool) -> Iterator[int]:
    """Write a GGUF file, called .partial until it is whole; yields the bytes of each piece."""
    tensors = model.listed()
    dtypes = {name: tensor_dtype(name, shape, model, dtype, pure) for name, shape in tensors}
    header = make_header(model, tensors, dtypes, dtype, path.stem)
    size = len(header) + sum(aligned(nbytes(shape, dtypes[name])) for name, shape in tensors)
    partial = path.with_name(path.name + ".partial")
    try:
        with OutputFile(partial, size) as file:
            file.write(header)
            for name, shape in tensors:
                for piece in pieces(name, shape, dtypes[name], model, weights):
                    file.write(piece.reshape(-1))
                    yield piece.nbytes
                file.write(bytes(aligned(file.nbytes) - file.nbytes))
            file.sync()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def tensor_dtype(name: str, shape: Shape, model: Model, dtype: str, pure: bool) -> str:
    """The dtype of a tensor: vectors and the choice of experts are float32, as llama.cpp has them,
    the head is what flashllm's conversion makes of it."""
    if len(shape) == 1 or name.endswith("mlp.gate.weight"):
        return "f32"
    tied = model.config["tie_word_embeddings"]
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return HEAD_DTYPE.get(dtype, dtype) if name == head and not pure else dtype


def make_header(
    model: Model, tensors: list[tuple[str, Shape]], dtypes: dict[str, str], dtype: str, name: str
) -> bytes:
    """Everything before the first tensor's data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header"
        arch = next(key for key, text in gguf.MODEL_ARCH_NAMES.items() if text == model.arch)
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[dtype])
        add_shape(writer, model.config)
        synthetic_tokenizer.add_to_gguf(writer, model.config["vocab_size"])
        names = gguf.get_tensor_name_map(arch, model.config["num_hidden_layers"])
        for tensor, shape in tensors:
            found = names[tensor.removesuffix(".weight")] + ".weight"
            kind = dtypes[tensor]
            writer.add_tensor_info(
                found, shape, np.dtype(np.float32), nbytes(shape, kind), raw_dtype=TYPES[kind]
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
        header = path.read_bytes()
    return header + bytes(aligned(len(header)) - len(header))


def add_shape(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Add what config.json says, as llama.cpp's src/llama-arch.cpp calls it."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(expert_size(config))


def nbytes(shape: Shape, dtype: str) -> int:
    """Bytes of a tensor."""
    block, size = gguf.GGML_QUANT_SIZES[TYPES[dtype]]
    return math.prod(shape) // block * size


def aligned(count: int) -> int:
    """The place of the next tensor after `count` bytes."""
    return -(-count // gguf.GGUF_DEFAULT_ALIGNMENT) * gguf.GGUF_DEFAULT_ALIGNMENT


def pieces(name: str, shape: Shape, dtype: str, model: Model, weights: Weights) -> Iterator[Bytes]:
    """A tensor's data, some rows at a time."""
    if len(shape) == 1:
        yield weights.vector(name, shape[0]).astype(np.float32).view(np.uint8)
        return
    rows, width = math.prod(shape[:-1]), shape[-1]
    size = head_dim(model.config)  # whole heads at once
    step = size * max(1, PIECE // (size * nbytes((width,), dtype)))
    turned = model.arch == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        if dtype == "f32":
            halves = weights.rows(name, width, "f16", first, count).view(np.float16)
            yield halves.astype(np.float32).view(np.uint8)
            continue
        found = weights.rows(name, width, dtype, first, count)
        yield interleaved(found, size) if turned else found


def interleaved(rows: Bytes, size: int) -> Bytes:
    """Rows of queries or keys in the order of GGUF's Llama, which rotates the elements 2i and
    2i + 1 of a head where transformers rotates i and i + size / 2."""
    halves = rows.reshape(-1, 2, size // 2, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)
