"""Understanding a checkpoint: every tensor is found, read by somebody, or named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_models import variants, write_folder, write_gguf
from safetensors.numpy import load_file, save_file

from flashllm.convert.source import understand
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.formats.opening import open_checkpoint


def folder(tmp_path: Path, name: str, **changes: np.ndarray | None) -> Path:
    """A variant's folder, with tensors added, replaced or (None) left out."""
    made = write_folder(name, tmp_path / name)
    tensors = {**load_file(made / "model.safetensors"), **changes}
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, made / "model.safetensors")
    return made


@pytest.mark.parametrize("name", ["llama", "falcon-40b", "neox", "phi3", "stablelm-12b", "opt"])
def test_roles_share_out_every_tensor(tmp_path: Path, name: str) -> None:
    source = understand(open_checkpoint(folder(tmp_path, name)))
    rows: dict[str, list[tuple[int, int]]] = {}
    for pieces in source.places.values():
        for piece in pieces:
            rows.setdefault(piece.tensor.name, []).append((piece.first, piece.count))
    assert rows.keys() == source.checkpoint.tensors.keys()
    for tensor, found in rows.items():
        at = 2 if "embed_positions" in tensor else 0
        for first, count in sorted(found):
            assert first == at, tensor
            at += count
        assert at == source.checkpoint.tensors[tensor].shape[0]


def test_norms_of_gemma_lack_one(tmp_path: Path) -> None:
    assert understand(open_checkpoint(folder(tmp_path, "gemma2"))).norm_offset == 1.0
    path = write_gguf("gemma2", tmp_path / "model.gguf")
    assert understand(open_checkpoint(path)).norm_offset == 0.0


def test_some_tensors_may_be_left_unread(tmp_path: Path) -> None:
    freqs = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}
    understand(open_checkpoint(folder(tmp_path, "llama", **freqs)))
    head = {"lm_head.weight": np.ones((300, 64), np.float32)}
    understand(open_checkpoint(folder(tmp_path, "llama-tied", **head)))
    source = understand(open_checkpoint(folder(tmp_path, "gemma3-vision")))
    assert any(name.startswith("vision_tower.") for name in variants()["gemma3-vision"]["shapes"])
    assert not any("vision" in p.tensor.name for ps in source.places.values() for p in ps)


@pytest.mark.parametrize(
    ("name", "changes", "error", "named"),
    [
        ("llama", {"model.layers.1.mlp.up_proj.weight": None}, CorruptModel, "up_proj.*missing"),
        (
            "llama",
            {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)},
            UnsupportedModel,
            "q_proj.bias.*llama family",
        ),
        (
            "phi3",
            {"model.layers.0.mlp.gate_up_proj.weight": np.ones((191, 64), np.float32)},
            CorruptModel,
            "gate_up_proj.*191 rows",
        ),
        (
            "neox",
            {"gpt_neox.layers.3.attention.query_key_value.weight": np.ones((192, 63), np.float32)},
            CorruptModel,
            "query_key_value.*attn_q",
        ),
        (
            "opt",
            {"model.decoder.embed_positions.weight": np.ones((128, 64), np.float32)},
            CorruptModel,
            "embed_positions.*130 expected",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, name, changes, error, named) -> None:
    with pytest.raises(error, match=named):
        understand(open_checkpoint(folder(tmp_path, name, **changes)))
