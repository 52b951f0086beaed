"""Hugging Face folders, held to the public safetensors library."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
from safetensors import SafetensorError, safe_open

from flashllm.formats.hf import CONFIG, SINGLE
from flashllm.formats.opening import open_checkpoint


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", tiny_hf.DTYPES)
def test_agrees_with_the_public_library(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m", dtype=dtype, shards=shards, tied=False)
    read = open_checkpoint(folder)
    assert (read.path, read.kind) == (folder, "safetensors")
    assert read.metadata == json.loads((folder / CONFIG).read_text())
    assert read.files == tuple(sorted(folder.glob("*.safetensors")))
    names = set()
    for file in read.files:
        with safe_open(file, "numpy") as peer:
            names |= set(peer.keys())
            for name in peer.keys():  # noqa: SIM118
                ours, theirs = read.tensor(name), peer.get_slice(name)
                assert (ours.file, ours.dtype) == (file, theirs.get_dtype())
                assert ours.shape == tuple(theirs.get_shape())
                data = file.read_bytes()[ours.offset : ours.offset + ours.nbytes]
                assert data == peer.get_tensor(name).tobytes()
    assert names == set(read.tensors)


def test_links_to_elsewhere_are_normal(tmp_path: Path) -> None:
    blobs, folder = tiny_hf.write_hf(tmp_path / "blobs", shards=2), tmp_path / "snapshot"
    folder.mkdir()
    for file in blobs.iterdir():
        hashed = file.rename(blobs / f"{abs(hash(file.name)):x}")
        try:
            (folder / file.name).symlink_to(os.path.relpath(hashed, folder))
        except OSError:
            pytest.skip("this system or user cannot make links")
    read = open_checkpoint(folder)
    assert all(file.parent == folder for file in read.files)


def test_a_scalar_has_one_element(tmp_path: Path) -> None:
    folder = tiny_hf.write_header(
        tmp_path, {"s": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}, bytes(4)
    )
    assert open_checkpoint(folder).tensor("s").shape == (1,)


def test_the_public_library_agrees_on_valid_dtypes(tmp_path: Path) -> None:
    """What it knows we know, with the same sizes: it refuses a tensor of another length."""
    from flashllm.safetensors_header import BITS

    for dtype, bits in BITS.items():
        header = {"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, bits]}}
        folder = tiny_hf.write_header(tmp_path / "m", header, bytes(bits))
        assert open_checkpoint(folder).tensor("a").nbytes == bits
        try:
            with safe_open(folder / SINGLE, "numpy") as peer:
                assert peer.get_slice("a").get_shape() == [8]
        except SafetensorError as error:
            pytest.fail(f"{dtype}: {error}")


def test_tiny_hf_is_the_model_of_tiny_gguf(tmp_path: Path) -> None:
    """The rows of q that a half rotation pairs are those that GGUF's interleaved one pairs."""
    weight = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    turned = tiny_hf.in_halves("blk.0.attn_q.weight", weight, head_dim=8)
    for head in range(2):
        for pair in range(4):
            first, second = 8 * head + 2 * pair, 8 * head + 2 * pair + 1
            np.testing.assert_array_equal(turned[8 * head + pair], weight[first])
            np.testing.assert_array_equal(turned[8 * head + pair + 4], weight[second])
