"""Tests of plan from the command line."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
import sparse_model
import tiny
import tiny_hf

from flashllm import read_speed_file
from flashllm.cli import measuring
from flashllm.cli.main import main
from flashllm.disk_curve import DiskCurve, Point
from flashllm.kernels import bandwidth
from flashllm.read_speed import MemoryRate, ReadSpeed

CURVE = DiskCurve(datetime.datetime.now(datetime.UTC), (Point("direct", 1 << 20, 4, 1e9),))
SPEED = ReadSpeed(CURVE, (MemoryRate(1, 10e9),))


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where speeds are kept, in a home of its own; some are there."""
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    path = tmp_path / "speed" / "a.json"
    monkeypatch.setattr(read_speed_file, "file_for", lambda folder: path)
    read_speed_file.save(SPEED, path)
    return path


def test_a_model_that_fits(
    tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [tiny_gguf, tiny_hf.write_hf(tmp_path / "hf"), tiny.model_dir(tmp_path)]
    for source in sources:
        assert main(["plan", str(source), "--mem", "1GB", "-c", "100"]) == 0
        lines = capsys.readouterr().out.splitlines()
        told = "fits in memory, needs 12[0-9] MB of the 1 GB allowed: about [0-9]+ to [0-9]+ tok/s"
        assert re.fullmatch(told, lines[-1])
        assert lines[0].startswith("model ")
        assert "100 tokens of context" in "".join(lines)


def test_one_that_does_not(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_gguf), "--mem", "100MB"]) == 6
    assert "does not fit" in capsys.readouterr().out
    assert main(["plan", str(tiny_gguf), "--mem", "0.5x"]) == 0  # on top of 0.2 GB


def test_one_that_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"layers": 12, "hidden": 256, "ffn": 1024, "heads": 8, "dtype": "Q8_0"}
    large = str(tiny.write_gguf(tmp_path / "large.gguf", **shape))
    assert main(["plan", large, "--mem", "1GB", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    mem = str((whole["smallest_budget"] + whole["total_bytes"]) // 2)
    assert main(["plan", large, "--mem", mem]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch("runs in .* MB, streaming .* MB per token from disk: about .*", lines[-1])
    assert any(line.startswith("streamed ") for line in lines)
    told = {}
    for threads in ("1", "2"):
        assert main(["plan", large, "--mem", mem, "--json", "-t", threads]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["tok_s"][0] < told["tok_s"][1] < whole["tok_s"][1]
    assert 0 < told["streamed_bytes"] < told["used_bytes"]
    assert told["resident_bytes"] == told["pinned_bytes"] + told["ring_bytes"]


def test_json(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tiny_gguf), "--dtype", "q4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] is True
    assert told["dtypes"] == ["q4", "q8"]
    parts = ("resident_bytes", "kv_bytes", "scratch_bytes", "overhead_bytes")
    assert told["total_bytes"] == sum(told[part] for part in parts)
    assert told["smallest_budget"] <= told["total_bytes"]


def test_speeds_are_measured_if_they_are_not_known(
    kept: Path,
    tiny_gguf: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept.unlink()
    assert main(["plan", str(tiny_gguf), "--mem", "1GB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tok_s"] is None
    assert "flashllm doctor" in told["warnings"][-1]
    monkeypatch.setattr(bandwidth, "measure", lambda threads, size: 10.0)
    monkeypatch.setattr(measuring, "_disk_curve", lambda folder, report: None)
    assert main(["plan", str(tiny_gguf), "--mem", "1GB"]) == 0
    captured = capsys.readouterr()
    assert "measuring" in captured.err
    assert "tok/s" in captured.out
    assert kept.exists()
    assert main(["plan", str(tiny_gguf), "--mem", "1GB"]) == 0
    assert "measuring" not in capsys.readouterr().err


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
        assert "tokens of context in f32" in capsys.readouterr().out


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


def test_running_sparse(
    tmp_path: Path, tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = sparse_model.write(tmp_path)
    limit = str(sparse_model.budget(model, "predictor", 2.0))
    flags = ["plan", str(model), "--mem", limit, "-c", str(sparse_model.N_CTX)]
    assert main([*flags, "--sparse", "predictor"]) == 0
    out = capsys.readouterr().out
    for said in (
        "sparse    predictor (lossy)",
        "predictors of rank 64, calibrated to find 96% of those that fire, and 5% of the others",
        "of 0 tokens before the present one",
        "units of 4 KiB, 16 or more at once",
        "runs sparse (predictor) in",
    ):
        assert said in out
    assert main([*flags, "--sparse", "gate", "--window", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sparse"]["mode"] == "gate"
    assert told["sparse"]["window_tokens"] == 0
    assert told["tok_s"] is not None
    assert main(["plan", str(model), "--mem", "4GB", "--sparse", "oracle"]) == 0
    out = capsys.readouterr().out
    assert "all neurons stay in memory" in out
    assert "fits in memory and runs sparse (oracle), needs" in out
    for other in (str(tiny_gguf), "smollm2-135m-instruct"):
        assert main(["plan", other, "--sparse", "gate"]) == 2
        assert "convert --codec row" in capsys.readouterr().err
    assert main([*flags, "--window", "3"]) == 2
