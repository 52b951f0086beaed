"""The GGUF reader on valid files, held to the public gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from flashllm.errors import CorruptModel, ModelIOError, ModelNotFound
from flashllm.formats.gguf import GGUFFile, read_header


@pytest.mark.parametrize("dtype", tiny.GGML_TYPES)
def test_agrees_with_the_public_reader(tmp_path: Path, dtype: str) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", dtype=dtype, tied=False)
    peer = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        assert list(file.header.tensors) == [tensor.name for tensor in peer.tensors]
        for theirs in peer.tensors:
            ours = file.header.tensors[theirs.name]
            assert ours.shape == tuple(int(n) for n in theirs.shape[::-1])
            assert ours.dtype == theirs.tensor_type.name
            assert (ours.offset, ours.nbytes) == (theirs.data_offset, theirs.n_bytes)
            assert file.read(theirs.name).tobytes() == theirs.data.tobytes()


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
    with GGUFFile(path) as file:
        assert file.header.version == 2
        assert file.read("a.weight").view("<f4").tolist() == list(range(64))


def test_rows_are_read_alone(tiny_gguf: Path) -> None:
    weights = tiny.random_weights(2, 64, 96, 4, 2, 320)["token_embd.weight"]
    with GGUFFile(tiny_gguf) as file:
        rows = file.read_rows("token_embd.weight", 17, 5)
        assert rows.shape == (5, 64 * 4)
        np.testing.assert_array_equal(rows.view("<f4"), weights[17:22])
        with pytest.raises(IndexError):
            file.read_rows("token_embd.weight", 318, 3)


def test_missing_things_are_named(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing"):
        read_header(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match="not a file"):
        read_header(tmp_path)
    with GGUFFile(tiny_gguf) as file, pytest.raises(CorruptModel, match="output"):
        file.read("output.weight")


def test_a_file_truncated_while_open_is_an_io_error(tiny_gguf: Path) -> None:
    with GGUFFile(tiny_gguf) as file:
        last = max(file.header.tensors.values(), key=lambda tensor: tensor.offset)
        with tiny_gguf.open("r+b") as damaged:
            damaged.truncate(last.offset + 1)
        with pytest.raises(ModelIOError) as caught:
            file.read(last.name)
        assert (caught.value.path, caught.value.offset) == (tiny_gguf, last.offset + 1)
