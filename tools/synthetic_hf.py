"""Synthetic models as Hugging Face folders of float16 safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import synthetic_tokenizer
from synthetic_shapes import Model, Shape
from synthetic_weights import Reader, Weights, checkpoint

from flashllm.flash.output import OutputFile

PIECE = 1 << 22  # bytes made at once


def write_hf(folder: Path, model: Model, weights: Weights, shard_bytes: int) -> Iterator[int]:
    """Write config.json, a tokeniser, and shards with an index; yields the bytes of each piece."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=1))
    synthetic_tokenizer.write_hf(folder)
    reader = Reader(weights)
    tensors = checkpoint(model.config, model.listed()).tensors
    shards = split(model.listed(), shard_bytes)
    weight_map = {}
    for number, held in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header = safetensors_header(held)
        size = len(header) + sum(tensors[tensor].nbytes for tensor, _ in held)
        with OutputFile(folder / name, size) as file:
            file.write(header)
            for tensor in (tensors[tensor] for tensor, _ in held):
                weight_map[tensor.name] = name
                step = max(1, PIECE // tensor.row_bytes // 16 * 16)
                for first in range(0, tensor.rows, step):
                    rows = reader.rows(tensor, first, min(step, tensor.rows - first))
                    file.write(rows.reshape(-1))
                    yield rows.nbytes
            file.sync()
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def split(tensors: list[tuple[str, Shape]], limit: int) -> list[list[tuple[str, Shape]]]:
    """Runs of tensors below `limit` bytes, at least one each."""
    shards: list[list[tuple[str, Shape]]] = []
    taken = limit
    for name, shape in tensors:
        nbytes = 2 * math.prod(shape)
        if taken + nbytes > limit:
            shards.append([])
            taken = 0
        shards[-1].append((name, shape))
        taken += nbytes
    return shards


def safetensors_header(tensors: list[tuple[str, Shape]]) -> bytes:
    """The header of float16 tensors (github.com/huggingface/safetensors, README)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + 2 * math.prod(shape)
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
