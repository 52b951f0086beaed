"""The rows of a layer that decide which of its neurons fire, read from units of codec `row`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import UnsupportedModel
from flashllm.flash.format import FlashModel
from flashllm.flash.layout import GROUP, round_up, row_bytes
from flashllm.flash.parts import FFNPart
from flashllm.flash.quantize import PLAIN, Floats, Quantized, dequantize
from flashllm.flash.reader import UnitReader

RUN_BYTES = 4 << 20
"""Bytes of units read at once."""


def row_part(model: FlashModel, layer: int) -> FFNPart:
    """The feed-forward of a layer. Raises UnsupportedModel unless it is of codec `row`."""
    part = model.group(f"layers.{layer}.ffn").part("ffn")
    if not isinstance(part, FFNPart) or part.codec != "row":
        raise UnsupportedModel(
            f"{model.path}: its neurons do not lie one by one; convert the model again with "
            "`flashllm convert --codec row`"
        )
    return part


def deciding_rows(reader: UnitReader, layer: int) -> Floats:
    """The gate rows of a layer, or up rows where it has no gates: float32 [neurons, hidden].

    Raises UnsupportedModel unless the layer is of codec `row`; CorruptModel, ModelIOError.
    """
    model = reader.model
    group, part = model.group(f"layers.{layer}.ffn"), row_part(model, layer)
    dtype = part.gate_dtype or part.up_dtype
    size = row_bytes(dtype, part.width)
    rows = np.empty((part.neurons, part.width), np.float32)
    stride = int(group.offsets[1])
    count = max(1, RUN_BYTES // stride)
    buffer = np.empty(count * stride, np.uint8)
    done = 0
    for first in range(0, group.units, count):
        units = min(count, group.units - first)
        reader.read_run(group, first, units, buffer)
        for unit in range(units):
            begin = int(group.offsets[first + unit] - group.offsets[first])
            data = buffer[begin : begin + int(group.lengths[first + unit])]
            records = data.reshape(-1, part.grain_bytes)
            rows[done : done + len(records)] = unpack_rows(records[:, :size], part.width, dtype)
            done += len(records)
    return rows


def deciding_bias(vectors: Mapping[str, Floats], layer: int, part: FFNPart) -> Floats:
    """What is added to the product with `deciding_rows`: float32 [neurons]."""
    role = "ffn_gate_bias" if part.gate_dtype else "ffn_up_bias"
    found = vectors.get(f"layers.{layer}.{role}")
    return np.zeros(part.neurons, np.float32) if found is None else found


def unpack_rows(data: NDArray[np.uint8], width: int, dtype: str) -> Floats:
    """Rows of codec `row`, uint8 [rows, bytes], as float32 [rows, width]: docs/format.md."""
    data = np.ascontiguousarray(data)
    if dtype in PLAIN:
        plain: Floats = data.view(PLAIN[dtype])[:, :width].astype(np.float32)
        return plain
    columns = round_up(width, 64)
    end = columns if dtype == "q8" else columns // 2
    codes = data[:, :end]
    if dtype != "q8":
        halves = codes.reshape(len(data), -1, 1, 32)
        codes = np.concatenate([halves & 15, halves >> 4], axis=2).reshape(len(data), columns)
    numbers = np.ascontiguousarray(data[:, end:]).view(np.float16)
    groups = columns // GROUP
    minimums = numbers[:, groups:] if dtype == "q4m" else None
    return dequantize(Quantized(dtype, codes, numbers[:, :groups], minimums))[:, :width]
