"""Rows of a checkpoint's tensors, read from its files."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny

from flashllm.convert.reading import TensorReader
from flashllm.errors import ModelIOError
from flashllm.formats.gguf import read_gguf


@pytest.mark.parametrize("dtype", tiny.GGML_TYPES)
def test_bytes_agree_with_the_public_reader(tmp_path: Path, dtype: str) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", dtype=dtype, tied=False)
    checkpoint = read_gguf(path)
    with TensorReader(checkpoint.files) as reader:
        for theirs in gguf.GGUFReader(path).tensors:
            tensor = checkpoint.tensor(theirs.name)
            assert reader.rows(tensor, 0, tensor.rows).tobytes() == theirs.data.tobytes()


def test_rows_are_read_alone(tiny_gguf: Path) -> None:
    weights = tiny.random_weights(2, 64, 96, 4, 2, 320)["token_embd.weight"]
    checkpoint = read_gguf(tiny_gguf)
    tensor = checkpoint.tensor("token_embd.weight")
    with TensorReader(checkpoint.files) as reader:
        rows = reader.rows(tensor, 17, 5)
        assert rows.shape == (5, 64 * 4)
        np.testing.assert_array_equal(rows.view("<f4"), weights[17:22])
        with pytest.raises(IndexError):
            reader.rows(tensor, 318, 3)


def test_a_file_truncated_while_open_is_an_io_error(tiny_gguf: Path) -> None:
    checkpoint = read_gguf(tiny_gguf)
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.offset)
    with TensorReader(checkpoint.files) as reader:
        with tiny_gguf.open("r+b") as damaged:
            damaged.truncate(last.offset + 1)
        with pytest.raises(ModelIOError) as caught:
            reader.rows(last, 0, last.rows)
        assert (caught.value.path, caught.value.offset) == (tiny_gguf, last.offset + 1)
