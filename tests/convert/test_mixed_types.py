"""Checkpoints of every tensor type, alone and mixed, through a whole conversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import tiny_hf
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from test_gguf_blocks import random_blocks

from flashllm.convert import convert
from flashllm.convert.gguf_blocks import EXACT, KEPT
from flashllm.convert.planning import plan_checkpoint
from flashllm.errors import UnsupportedModel
from flashllm.flash.format import FFNPart, MatrixPart, read_model
from flashllm.model.options import LoadOptions

SHAPE = {"layers": 2, "hidden": 256, "ffn": 512, "heads": 4, "kv_heads": 2, "vocab": 320}
Q4_K_M = {"token_embd": "Q6_K", "attn_v": "Q6_K", "ffn_down": "Q6_K"}


def write(path: Path, type_of: Callable[[str], str]) -> Path:
    """A tiny Llama of random blocks with small scales; type_of a role names its type."""
    metadata = {"general.alignment": 32} | gguf_metadata(path)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if key != "general.architecture":
            add(writer, key, value)
    for name, weight in tiny.random_weights(2, 256, 512, 4, 2, 320).items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight)
            continue
        dtype = type_of(name.split(".")[-2])
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
        raw = random_blocks(dtype, largest=0.01, rows=weight.shape[0])
        if dtype == "MXFP4":
            raw.reshape(-1, 17)[:, 0] = 120
        raw = np.ascontiguousarray(raw[:, : weight.shape[1] // block * size])
        writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType[dtype])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_metadata(path: Path) -> dict[str, object]:
    """What tiny.write_gguf writes for this shape."""
    from flashllm.formats.gguf import read_gguf

    return read_gguf(tiny.write_gguf(path.with_suffix(".f32"), **SHAPE)).metadata


def add(writer: gguf.GGUFWriter, key: str, value: object) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, str(value))


@pytest.mark.parametrize("dtype", [d for d in KEPT if d not in ("F32", "F16", "BF16")])
def test_every_type_is_converted(tmp_path: Path, dtype: str) -> None:
    source = write(tmp_path / "m.gguf", lambda role: dtype)
    plan = plan_checkpoint(source, LoadOptions())
    model = read_model(convert(source, tmp_path / "m"))
    assert plan.dtypes == (KEPT[dtype],)
    assert plan.weight_bytes == model.unit_bytes
    loss = model.manifest.loss or {}
    assert not loss if dtype in EXACT else max(loss.values(), default=0) < 0.08


def test_a_mixture_as_llama_cpp_makes_it(tmp_path: Path) -> None:
    source = write(tmp_path / "m.gguf", lambda role: Q4_K_M.get(role, "Q4_K"))
    plan = plan_checkpoint(source, LoadOptions())
    model = read_model(convert(source, tmp_path / "m"))
    assert plan.weight_bytes == model.unit_bytes
    assert set(plan.dtypes) == {"q4m", "q8"}
    ffn = model.groups["layers.0.ffn"].parts[0]
    assert isinstance(ffn, FFNPart)
    assert (ffn.gate_dtype, ffn.up_dtype, ffn.down_dtype) == ("q4m", "q4m", "q8")
    attention = {part.role: part for part in model.groups["layers.1.attn"].parts}
    values = attention["attn_v"]
    assert isinstance(values, MatrixPart)
    assert values.dtype == "q8"


def test_gate_and_up_of_different_types(tmp_path: Path) -> None:
    source = write(
        tmp_path / "m.gguf", lambda role: {"ffn_up": "Q6_K", "ffn_gate": "Q4_K"}.get(role, "Q4_0")
    )
    plan = plan_checkpoint(source, LoadOptions())
    model = read_model(convert(source, tmp_path / "m"))
    ffn = model.groups["layers.0.ffn"].parts[0]
    assert isinstance(ffn, FFNPart)
    assert (ffn.gate_dtype, ffn.up_dtype, ffn.down_dtype) == ("q8", "q8", "q4")
    assert plan.weight_bytes == model.unit_bytes


@pytest.mark.parametrize("dtype", ["keep", "q4"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"])
def test_types_without_arithmetic_are_refused(tmp_path: Path, name: str, dtype: str) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length]
    at = header.index(f'"{name}"'.encode())
    header = header[:at] + header[at:].replace(b'"F32"', b'"I32"', 1)
    file.write_bytes(data[:8] + header + data[8 + length :])
    with pytest.raises(UnsupportedModel, match=f"{name} is I32"):
        plan_checkpoint(folder, LoadOptions(), dtype=dtype)
