"""The GGUF reader on valid files, held to the public gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from flashllm.errors import CorruptModel, ModelNotFound
from flashllm.formats.gguf import read_gguf, read_header


@pytest.mark.parametrize("dtype", tiny.GGML_TYPES)
def test_agrees_with_the_public_reader(tmp_path: Path, dtype: str) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", dtype=dtype, tied=False)
    peer = gguf.GGUFReader(path)
    read = read_gguf(path)
    assert list(read.tensors) == [tensor.name for tensor in peer.tensors]
    for theirs in peer.tensors:
        ours = read.tensor(theirs.name)
        assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
        assert (ours.dtype, ours.file) == (theirs.tensor_type.name, path)
        assert (ours.offset, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)


def test_metadata_agrees_with_the_public_reader(tmp_path: Path) -> None:
    extra = {"x.neg": -5, "x.floats": [0.5, 1.5], "x.flags": [True, False], "x.empty": ""}
    path = tiny.write_gguf(tmp_path / "m.gguf", metadata=extra)
    fields = gguf.GGUFReader(path).fields
    ours = read_header(path).metadata
    assert ours == {k: f.contents() for k, f in fields.items() if not k.startswith("GGUF.")}


def test_version_2_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v2.gguf"
    weights = {"a.weight": (np.arange(64, dtype=np.float32).reshape(2, 32), "F32")}
    path.write_bytes(tiny.gguf_bytes({"general.architecture": "llama"}, weights, version=2))
    header = read_header(path)
    assert header.version == 2
    assert header.tensors["a.weight"].shape == (2, 32)


def test_missing_things_are_named(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        read_header(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="not a file"):
        read_header(tmp_path)
    with pytest.raises(CorruptModel, match="output"):
        read_gguf(tiny_gguf).tensor("output.weight")
