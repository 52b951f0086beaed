"""Tests of hub/store.py: models are found by name or path, and only models are removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flashllm.errors import InvalidInput, ModelIOError, ModelNotFound
from flashllm.hub import store


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def put(name: str) -> Path:
    folder = store.models_dir() / name
    folder.mkdir(parents=True)
    manifest = {"dtype": "keep", "config": {"family": "llama"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "units-00001.safetensors").write_bytes(bytes(1000))
    return folder


def test_home_is_the_variable_or_the_users_data_folder(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.models_dir() == home / "models"
    monkeypatch.delenv("FLASHLLM_HOME")
    assert store.models_dir().parts[-2:] == ("flashllm", "models")


def test_an_empty_store_lists_nothing() -> None:
    assert store.list_models() == []


def test_models_are_listed_with_size_and_dtype() -> None:
    put("b")
    put("a")
    (store.models_dir() / ".pull-x").mkdir()
    (store.models_dir() / "half").mkdir()
    models = store.list_models()
    assert [model.name for model in models] == ["a", "b"]
    assert models[0].dtype == "keep"
    assert models[0].family == "llama"
    assert models[0].bytes > 1000


def test_a_damaged_manifest_is_still_listed() -> None:
    (put("a") / "manifest.json").write_text("{")
    assert store.list_models()[0].dtype == "unreadable"


def test_find_by_name_alias_and_path() -> None:
    folder = put("smollm2-135m-instruct")
    assert store.find("smollm2-135m-instruct") == folder
    assert store.find("SmolLM2") == folder
    assert store.find(folder) == folder


def test_advice_when_nothing_is_found(tmp_path: Path) -> None:
    put("mine")
    with pytest.raises(ModelNotFound, match=r"in the store: mine; .*smollm2"):
        store.find("nothing")
    with pytest.raises(ModelNotFound, match="flashllm pull smollm2-135m-instruct"):
        store.find("smollm2")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ModelNotFound, match="flashllm convert"):
        store.find(tmp_path / "x.gguf")
    with pytest.raises(ModelNotFound, match="not a converted model"):
        store.find(tmp_path)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".hidden", "A B"])
def test_names_cannot_leave_the_store(name: str) -> None:
    with pytest.raises(InvalidInput):
        store.place_for(name)
    with pytest.raises(ModelNotFound):
        store.remove(name)


def test_remove_takes_names_never_paths() -> None:
    folder = put("mine")
    with pytest.raises(ModelNotFound):
        store.remove(str(folder))
    assert store.remove("mine") == folder
    assert list(store.models_dir().iterdir()) == []


def test_a_refused_removal_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    put("mine")

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ModelIOError, match="Permission denied"):
        store.remove("mine")
