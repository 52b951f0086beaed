"""Tests of hub/foreign.py: converted once, found again, anew when the source has changed."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import tiny_hf
from recording import Recorder

from flashllm import machine
from flashllm.errors import CorruptModel, DiskFull, InvalidInput, ModelNotFound, UnsupportedModel
from flashllm.hub import store
from flashllm.hub.origin import FILE_NAME, read_origin
from flashllm.hub.pull import locate, pull


@pytest.fixture
def source_file(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tiny.write_gguf(tmp_path / "models" / "My Model (v1).gguf")


def test_a_file_is_converted_once(source_file: Path) -> None:
    recorder = Recorder()
    path = locate(source_file, recorder.workshop())
    assert path.parent == store.models_dir()
    assert path.name.startswith("my-model-v1-")
    assert recorder.messages == ["planned: it fits.", f"converting {source_file} to {path}"]
    again = Recorder()
    assert locate(source_file, again.workshop()) == path
    assert locate(path.name, again.workshop()) == path
    assert pull(str(source_file), again.workshop(), offline=True) == path
    assert again.converted == again.planned == []
    assert [model.name for model in store.list_models()] == [path.name]


def test_a_changed_source_is_converted_anew(source_file: Path) -> None:
    path = locate(source_file, Recorder().workshop())
    tiny.write_gguf(source_file, seed=7)
    os.utime(source_file, ns=(1, 1))
    recorder = Recorder()
    assert locate(source_file, recorder.workshop()) == path
    assert "has changed" in recorder.messages[1]
    assert recorder.weights[source_file.name] == source_file.read_bytes()
    assert locate(source_file, recorder.workshop()) == path
    assert len(recorder.converted) == 1


def test_files_of_one_name_do_not_collide(source_file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = tiny.write_gguf(tmp_path / "other" / source_file.name, seed=1)
    first = locate(source_file, Recorder().workshop())
    assert locate(other, Recorder().workshop()) != first
    assert locate(source_file, Recorder().workshop(), "q8") != first
    assert len(store.list_models()) == 3


def test_a_folder_and_what_lies_beside_its_weights(tmp_path: Path) -> None:
    folder = tiny_hf.write_hf(tmp_path / "tiny", shards=2)
    recorder = Recorder()
    path = locate(folder, recorder.workshop())
    assert path.name.startswith("tiny-")
    locate(str(folder), recorder.workshop())
    assert len(recorder.converted) == 1
    os.utime(folder / "tokenizer_config.json", ns=(1, 1))
    locate(folder, recorder.workshop())
    assert len(recorder.converted) == 2


def test_any_part_of_a_split_file_is_the_model(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for i in range(3):
        writer.add_tensor(f"t{i}.weight", np.full((2, 32), i, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 2
    recorder = Recorder()
    path = locate(parts[1], recorder.workshop())
    assert path.name.startswith("m-")
    assert locate(parts[0], recorder.workshop()) == path
    assert len(recorder.converted) == 1
    os.utime(parts[1], ns=(1, 1))
    assert locate(parts[0], recorder.workshop()) == path
    assert len(recorder.converted) == 2


def test_a_relative_path_is_the_same_model(
    source_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = locate(source_file, Recorder().workshop())
    monkeypatch.chdir(source_file.parent)
    recorder = Recorder()
    assert locate(source_file.name, recorder.workshop()) == path
    assert recorder.converted == []


def test_a_source_that_may_only_be_read(source_file: Path) -> None:
    source_file.chmod(0o400)
    source_file.parent.chmod(0o500)
    try:
        before = sorted(source_file.parent.iterdir())
        locate(source_file, Recorder().workshop())
        assert sorted(source_file.parent.iterdir()) == before
    finally:
        source_file.parent.chmod(0o700)


def test_a_model_whose_origin_was_lost_is_converted_anew(source_file: Path) -> None:
    path = locate(source_file, Recorder().workshop())
    for damage in (b"", b"{}", b"[1]", b'{"source": 3, "files": {}}', b"\xff"):
        (path / FILE_NAME).write_bytes(damage)
        assert read_origin(path) is None
        recorder = Recorder()
        assert locate(source_file, recorder.workshop()) == path
        assert len(recorder.converted) == 1


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("x.gguf", b"GGUF", CorruptModel),
        ("x.bin", b"\x80", UnsupportedModel),
        ("model.safetensors", b"\0" * 64, InvalidInput),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    tmp_path: Path, name: str, content: bytes, error: type[Exception]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=name):
        locate(tmp_path / name, Recorder().workshop())
    assert not store.models_dir().exists()


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model called"):
        pull("models/missing.gguf", Recorder().workshop())


def test_a_full_disk_is_noticed_before(source_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_disk", lambda path: 100)
    recorder = Recorder()
    with pytest.raises(DiskFull, match="My Model"):
        locate(source_file, recorder.workshop())
    assert recorder.converted == []
