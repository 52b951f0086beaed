"""Tests of plan from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tiny
import tiny_hf

from flashllm.cli.main import main


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))


def test_a_model_that_fits(
    tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [tiny_gguf, tiny_hf.write_hf(tmp_path / "hf"), tiny.model_dir(tmp_path)]
    for source in sources:
        assert main(["plan", str(source), "--mem", "1GB", "-c", "100"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch("fits: needs 25[01] MB of the 1 GB allowed", lines[-1])
        assert lines[0].startswith("model ")
        assert "100 tokens of context" in "".join(lines)


def test_one_that_does_not(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_gguf), "--mem", "100MB"]) == 6
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", str(tiny_gguf), "--mem", "0.5x"]) == 6


def test_json(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_gguf), "--dtype", "q4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is True
    assert told["dtypes"] == ["q4", "q8"]
    parts = told["resident_bytes"] + told["kv_bytes"] + told["overhead_bytes"]
    assert told["total_bytes"] == told["smallest_budget"] == parts


def test_keys_and_values(
    tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (str(tiny_gguf), str(tiny.model_dir(tmp_path)), "smollm2-135m-instruct"):
        told = {}
        for kv_dtype in ("f16", "f32"):
            assert main(["plan", source, "--kv-dtype", kv_dtype, "--json", "--mem", "4GB"]) == 0
            told[kv_dtype] = json.loads(capsys.readouterr().out)
            assert told[kv_dtype]["kv_dtype"] == kv_dtype
        assert told["f32"]["kv_bytes"] == 2 * told["f16"]["kv_bytes"]
        assert main(["plan", source, "--kv-dtype", "f32", "--mem", "4GB"]) == 0
        assert "tokens of context in f32, " in capsys.readouterr().out


def test_a_known_model_that_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smollm2-135m-instruct", "--mem", "2GB"]) == 0
    out = capsys.readouterr().out
    assert "estimates" in out
    assert "fits" in out


def test_bad_requests(tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_gguf), "--mem", "lots"]) == 2
    assert main(["plan", str(tiny_gguf), "-c", "1000"]) == 2
    assert main(["plan", str(tmp_path / "nothing")]) == 3
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert main(["plan", str(tmp_path / "pytorch_model.bin")]) == 5
    assert "pickle" in capsys.readouterr().err
