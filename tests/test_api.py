"""Tests of the package's front door: its names, its import, its documented examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

import flashllm
from flashllm.convert.gguf_blocks import KEPT
from flashllm.model.families import FAMILIES

DOCS = Path(__file__).parents[1] / "docs" / "python.md"
NAMES = [
    "LLM", "Done", "FlashError", "Message", "Plan", "Prefill", "Session", "Stats", "Token",
    "calibrate", "errors", "load", "plan", "prune", "pull",
]  # fmt: skip


def test_the_exported_names() -> None:
    assert flashllm.__all__ == NAMES
    assert dir(flashllm) == sorted(NAMES)
    for name in NAMES:
        assert getattr(flashllm, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        flashllm.nonsense  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("numba", "numpy", "tokenizers", "jinja2", "flashllm.llm")
    program = f"import sys, flashllm; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_only_fetching_imports_what_fetches() -> None:
    program = "import sys, flashllm.api; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_a_model_is_found_by_its_directory_or_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path))
    built = tiny.model_dir(tmp_path)
    with flashllm.load(built) as llm:
        assert llm.session().ask("hello", max_tokens=3, temperature=0) is not None
    (tmp_path / "models").mkdir()
    built.rename(tmp_path / "models" / "small")
    with flashllm.load("small") as llm:
        assert llm.name == "small"
    with pytest.raises(flashllm.errors.ModelNotFound):
        flashllm.load("no-such-model")


def test_every_family_is_documented() -> None:
    table = (DOCS.parent / "models.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        for architecture in (*family.hf_architectures, *family.gguf_architectures):
            assert f"`{architecture}`" in table
    for dtype in KEPT:
        assert dtype in table


def test_a_foreign_file_is_loaded_through_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path
) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    told: list[str] = []
    with flashllm.load(tiny_gguf, dtype="q8", on_message=told.append) as llm:
        first = llm.complete("the", max_tokens=4, temperature=0).result()
        name = llm.name
    assert f"converting {tiny_gguf} to {tmp_path / 'home' / 'models' / name}" in told
    with flashllm.load(tiny_gguf, dtype="q8", on_message=told.append) as llm:
        assert llm.complete("the", max_tokens=4, temperature=0).result() == first
    assert len(told) == 2
    planned = flashllm.plan(tiny_gguf, dtype="q8", mem_budget="1GB")
    here = flashllm.plan(name, mem_budget="1GB")
    assert (planned.resident_bytes, planned.dtypes) == (here.resident_bytes, here.dtypes)


def test_plans_of_what_is_not_here() -> None:
    plan = flashllm.plan("llama3.1", mem_budget="16GB", n_ctx=8192)
    assert plan.fits
    assert plan.kv_bytes == 2 * 2 * 32 * 8 * 128 * 8192  # float16 keys and values
    assert plan.disk_bytes > 16e9
    assert flashllm.plan("llama3.1:f16", mem_budget="16GB").weight_bytes > 16e9
    assert flashllm.plan("llama3.1", dtype="f16", mem_budget="16GB").weight_bytes > 16e9
    with pytest.raises(flashllm.errors.InvalidInput):
        flashllm.plan("llama2", n_ctx=8192)
    with pytest.raises(flashllm.errors.ModelNotFound):
        flashllm.plan("no-such-model")


def test_pulling_offline_what_is_not_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path))
    with pytest.raises(flashllm.errors.ModelNotFound):
        flashllm.pull("smollm2", offline=True)


def test_the_documented_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 8
    names = {
        "model_dir": tiny.model_dir(tmp_path, context=512),
        "gguf_file": tiny.write_gguf(tmp_path / "model.gguf"),
        "folder": tmp_path,
    }
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), names)
    assert "perplexity" in capsys.readouterr().out
