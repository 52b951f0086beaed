"""Tests of ls, rm and pull: the store from the command line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from flashllm.cli.main import main


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path))
    return tmp_path / "models"


def put(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(
        json.dumps({"dtype": "keep", "config": {"family": "llama"}})
    )
    return folder


def test_ls_of_nothing_says_what_to_pull(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out


def test_ls(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(models / "mine")
    assert main(["ls"]) == 0
    assert capsys.readouterr().out.split()[0] == "mine"
    assert main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["folder"] == str(models)
    assert [row["path"] for row in listed["models"]] == [str(models / "mine")]


def test_rm_does_not_guess(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(models / "mine")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["rm", "mine"]) == 2
    assert "-y" in capsys.readouterr().err
    assert folder.exists()
    assert main(["rm", "-y", "mine"]) == 0
    assert not folder.exists()
    assert main(["rm", "-y", "mine"]) == 3


@pytest.mark.parametrize(("answer", "code"), [(True, 0), (False, 130)])
def test_rm_asks(models: Path, monkeypatch: pytest.MonkeyPatch, answer: bool, code: int) -> None:
    folder = put(models / "mine")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda *args, **kwargs: answer)
    assert main(["rm", "mine"]) == code
    assert folder.exists() is not answer


def test_pull_of_what_is_here_needs_no_network(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(models / "smollm2-135m-instruct")
    assert main(["pull", "--offline"]) == 0
    assert capsys.readouterr().out == f"{folder}\n"


def test_pull_offline_of_what_is_not_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--offline"]) == 3
    assert "once with a network" in capsys.readouterr().err
