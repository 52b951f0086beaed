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
    with pytest.raises(ModelNotFound, match=r"in the store: mine; .*ls --available"):
        store.find("nothing")
    with pytest.raises(ModelNotFound, match="flashllm pull smollm2"):
        store.find("smollm2")
    with pytest.raises(ModelNotFound, match="flashllm pull acme/tiny:Q4_0"):
        store.find("acme/tiny:Q4_0")
    with pytest.raises(ModelNotFound, match="not a model in the flash format"):
        store.find(tmp_path)


def test_models_of_the_hub_are_found_as_they_were_pulled() -> None:
    put("acme--tiny-gguf--q4_k_m")
    put("acme--tiny-gguf--q8_0")
    put("acme--tiny")
    put("acme--tiny--at-v1.0--q4")
    put("qwen3-8b--q8")
    for name, folder in {
        "acme/tiny-GGUF:q8_0": "acme--tiny-gguf--q8_0",
        "acme/tiny-GGUF": "acme--tiny-gguf--q4_k_m",  # as a pull would choose
        "Acme/Tiny": "acme--tiny",
        "acme/tiny:keep": "acme--tiny",
        "acme/tiny@v1.0:q4": "acme--tiny--at-v1.0--q4",
        "https://huggingface.co/acme/tiny": "acme--tiny",
        "qwen3:8b:q8": "qwen3-8b--q8",
    }.items():
        assert store.find(name).name == folder
    for name in ("acme/tiny:q4", "acme/tiny-GGUF:F16", "acme/tiny@v1.0", "qwen3:8b"):
        with pytest.raises(ModelNotFound):
            store.find(name)


def test_unfinished_downloads_are_listed_and_removed() -> None:
    workspace = store.workspace_for("acme/Tiny--GGUF", "0123456789abcdef")
    (workspace / "Tiny--GGUF").mkdir(parents=True)
    (workspace / "Tiny--GGUF" / "x.gguf.part").write_bytes(bytes(100))
    (unfinished,) = store.list_unfinished()
    assert (unfinished.repo, unfinished.bytes) == ("acme/Tiny--GGUF", 100)
    assert store.list_models() == []
    store.remove_unfinished(unfinished)
    assert store.list_unfinished() == []


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
