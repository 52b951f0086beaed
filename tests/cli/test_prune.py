"""The verb prune, the way from a pruned checkpoint, and what is told of a pruned model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

import flashllm
from flashllm.cli.main import main
from flashllm.flash.format import read_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.model_dir(tmp_path, dtype="f16", hidden=128, ffn=512)


def test_prune(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, target = tmp_path / "text.txt", tmp_path / "half"
    text.write_text(tiny.CORPUS * 8)
    flags = ["--sparsity", "0.6", "--text", str(text), "--tokens", "400", "-t", "1"]
    assert main(["prune", str(model), str(target), *flags]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(target)
    assert "60.1% of the layers' weights are zero" in said.err
    assert main(["show", str(target)]) == 0
    assert "60 % zero, by wanda on" in capsys.readouterr().out
    assert main(["show", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["codec"] == "bitmap"
    assert told["unit_bytes"] < read_model(model).unit_bytes
    assert main(["run", "-m", str(target), "-p", "hello", "-n", "4", "-t", "1"]) == 0


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--method", "wanda"], "needs text"),
        (["--sparsity", "0.5", "--pattern", "2:4"], "choose one"),
        (["--pattern", "half", "--method", "magnitude"], "no pattern"),
        (["--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_refusals(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    complaint: str,
) -> None:
    assert main(["prune", str(model), str(tmp_path / "p"), *flags]) != 0
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


def test_from_python(tmp_path: Path, model: Path) -> None:
    found = flashllm.prune(model, tmp_path / "p", sparsity="2:4", method="magnitude", threads=1)
    assert found.sparsity == pytest.approx(0.5, abs=0.01)
    pruned = read_model(found.path).manifest.source["pruned"]
    assert (pruned["sparsity"], pruned["group"]) == (0.5, 4)


def test_convert_what_comes_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny.write_gguf(tmp_path / "m.gguf", sparsity=0.6, hidden=128, ffn=512)
    flags = ["--dtype", "q8", "--sparse-min", "0.4"]
    assert main(["convert", str(checkpoint), str(tmp_path / "m"), *flags]) == 0
    assert "counting the weights that are zero" in capsys.readouterr().err
    assert read_model(tmp_path / "m").manifest.codec == "bitmap"
    assert main(["verify", str(tmp_path / "m")]) == 0
    assert main(["convert", str(checkpoint), str(tmp_path / "n"), "--sparse-min", "2"]) == 2
