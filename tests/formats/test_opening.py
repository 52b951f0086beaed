"""Whatever a user may name: models are opened, everything else is told what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_hf

from flashllm.errors import (
    CorruptModel,
    FlashError,
    InvalidInput,
    ModelNotFound,
    UnsupportedModel,
)
from flashllm.formats.opening import open_checkpoint


def test_files_and_folders_are_told_apart(tmp_path: Path, tiny_gguf: Path) -> None:
    assert open_checkpoint(tiny_gguf).kind == "gguf"
    assert open_checkpoint(tiny_gguf.rename(tmp_path / "no-suffix")).kind == "gguf"
    folder = tiny_hf.write_hf(tmp_path / "hf")
    assert open_checkpoint(folder).kind == "safetensors"


def file(name: str, content: bytes = b"?" * 64) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def folder(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in names:
            (folder / name).write_bytes(b"{}")
        return folder

    return make


REFUSED: dict[str, tuple[Callable[[Path], Path], type[FlashError], str]] = {
    "absent": (lambda folder: folder / "nothing", ModelNotFound, "no such file"),
    "text": (file("notes.txt"), CorruptModel, "not a GGUF"),
    "empty": (file("empty.gguf", b""), CorruptModel, "ends inside"),
    "wrong GGUF": (file("wrong.gguf"), CorruptModel, "not a GGUF"),
    "pickle": (file("pytorch_model.bin"), UnsupportedModel, "pickle.*safetensors"),
    "checkpoint": (file("model.CKPT"), UnsupportedModel, "pickle"),
    "zip": (file("weights", b"PK\x03\x04"), UnsupportedModel, "pickle"),
    "ONNX": (file("model.onnx"), UnsupportedModel, "ONNX"),
    "ggml": (file("ggml-model-q4_0.bin", b"tjgg" + bytes(60)), UnsupportedModel, "gave up"),
    "one safetensors": (file("model.safetensors"), InvalidInput, "name its folder"),
    "Git LFS pointer": (
        file("model.gguf", b"version https://git-lfs.github.com/spec/v1\n"),
        CorruptModel,
        "git lfs pull",
    ),
    "empty folder": (folder(), ModelNotFound, "holds no model"),
    "only config": (folder("config.json"), ModelNotFound, "holds no model"),
    "no config": (folder("model.safetensors"), ModelNotFound, "no config.json"),
    "other weights": (
        folder("config.json", "consolidated.safetensors"),
        ModelNotFound,
        "no model.safetensors",
    ),
    "no index": (
        folder("config.json", "model-00001-of-00002.safetensors"),
        CorruptModel,
        "index.json is missing",
    ),
    "pickles": (
        folder("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        UnsupportedModel,
        "00001-of-00002.bin: is a pickle",
    ),
    "original Llama": (folder("consolidated.00.pth", "params.json"), UnsupportedModel, "pickle"),
    "TensorFlow": (folder("config.json", "tf_model.h5"), UnsupportedModel, "TensorFlow"),
    "Flax": (folder("config.json", "flax_model.msgpack"), UnsupportedModel, "Flax"),
    "adapter": (
        folder("adapter_config.json", "adapter_model.safetensors"),
        UnsupportedModel,
        "adapter",
    ),
    "folder of GGUF": (folder("b.gguf", "a.gguf"), InvalidInput, "'a.gguf'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_everything_else_is_told_what_it_is(tmp_path: Path, what: str) -> None:
    make, kind, message = REFUSED[what]
    path = make(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        open_checkpoint(path)
    assert type(caught.value) is kind
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flash_model_needs_no_conversion(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="flash format already"):
        open_checkpoint(tiny.model_dir(tmp_path))


def test_lfs_pointers_among_the_shards(tmp_path: Path) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m", shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CorruptModel, match="git lfs pull"):
        open_checkpoint(folder)
