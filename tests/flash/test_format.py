"""What the writer wrote is what the format says, for us and for the public library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import xxhash
from damage import UNITS
from safetensors import safe_open

from flashllm.errors import ModelNotFound
from flashllm.flash.format import read_model, read_small


def test_the_public_library_opens_the_files(model: Path) -> None:
    opened = read_model(model)
    raw = (model / UNITS).read_bytes()
    with safe_open(model / UNITS, framework="np") as public:
        assert public.metadata() == {"format": "flashllm-units", "version": "1"}
        for name, group in opened.groups.items():
            data = public.get_tensor(name)
            assert raw[group.file_offset : group.file_offset + len(data)] == data.tobytes()
            np.testing.assert_array_equal(public.get_tensor(f"{name}.offsets"), group.offsets)
            np.testing.assert_array_equal(public.get_tensor(f"{name}.lengths"), group.lengths)
            np.testing.assert_array_equal(public.get_tensor(f"{name}.xxh3"), group.checksums)
        assert len(public.keys()) == 4 * len(opened.groups)
    assert set(safetensors.numpy.load_file(model / "small.safetensors")) == set(read_small(model))


def test_units_are_aligned_padded_with_zeros_and_checksummed(model: Path) -> None:
    raw = (model / UNITS).read_bytes()
    for group in read_model(model).groups.values():
        assert group.file_offset % 4096 == 0
        assert (group.offsets % 4096 == 0).all()
        for unit in range(group.units):
            begin, end = (group.file_offset + int(group.offsets[i]) for i in (unit, unit + 1))
            stop = begin + int(group.lengths[unit])
            assert xxhash.xxh3_64_intdigest(raw[begin:stop]) == int(group.checksums[unit])
            assert 0 <= end - stop < 4096
            assert not any(raw[stop:end])


def test_groups_and_parts(model: Path) -> None:
    groups = read_model(model).groups
    layers = [f"layers.{i}.{kind}" for i in range(2) for kind in ("attn", "ffn")]
    assert list(groups) == ["embed", *layers]
    attention = [part.role for part in groups["layers.1.attn"].parts]
    assert attention == ["attn_q", "attn_k", "attn_v", "attn_out"]
    ffn = groups["layers.0.ffn"].part("ffn")
    assert (ffn.kind, ffn.codec, ffn.neurons, ffn.width) == ("ffn", "tile", 4096, 128)
    for group in groups.values():
        assert sum(part.units for part in group.parts) == group.units


def test_small_tensors_are_named_by_role(model: Path) -> None:
    small = read_small(model)
    norms = {f"layers.{i}.{kind}_norm" for i in range(2) for kind in ("attn", "ffn")}
    assert set(small) == norms | {"output_norm"}
    assert all(vector.shape == (128,) and vector.dtype == np.float32 for vector in small.values())


def test_the_manifest_is_readable_json_that_lists_every_file(model: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    assert set(manifest["files"]) == {p.name for p in model.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        data = (model / name).read_bytes()
        assert entry == {"bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}


def test_missing_models_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        read_model(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="not a flash model"):
        read_model(tmp_path)
