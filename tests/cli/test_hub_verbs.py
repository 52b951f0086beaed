"""Tests of pulling, planning, showing and chatting with models of a hub and of foreign files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import tiny_hf
from fake_hub import FakeHub, Repo, files_of
from huggingface_hub import close_session

from flashllm.cli.main import main

FAST = ["--backend", "reference", "--temp", "0", "-n", "4"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    gguf = tiny.write_gguf(tmp_path / "x.gguf", dtype="Q8_0").read_bytes()
    folder = tiny_hf.write_hf(tmp_path / "repo", shards=2, dtype="BF16")
    repos = {
        "acme/tiny-GGUF": Repo({"tiny-Q8_0.gguf": gguf}),
        "acme/tiny": Repo(files_of(folder), licence="mit"),
        "acme/other": Repo(
            {"config.json": b'{"architectures": ["Mamba"]}'}
            | {name: content for name, content in files_of(folder).items() if name != "config.json"}
        ),
    }
    with FakeHub(repos) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        yield fake
        close_session()


def succeed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code = main(args)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def fail(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(args)
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err.splitlines()[-1]


def test_a_gguf_of_the_hub_from_pull_to_answer(
    hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "acme/tiny-GGUF:Q8_0"]) == 0
    captured = capsys.readouterr()
    folder = home / "models" / "acme--tiny-gguf--q8_0"
    assert captured.out == f"{folder}\n"
    stages = [line.split()[0] for line in captured.err.splitlines()]
    assert stages[0] == "reading"
    assert stages[-2:] == ["fetching", "converting"]
    assert "llama family" in captured.err
    requests = len(hub.requests)
    assert json.loads(succeed(capsys, "pull", "acme/tiny-GGUF", "--json"))["path"] == str(folder)
    assert succeed(capsys, "run", "-m", "acme/tiny-GGUF", "-p", "hello", *FAST).strip()
    told = json.loads(succeed(capsys, "show", "acme/tiny-GGUF", "--json"))
    assert told["origin"]["source"] == "acme/tiny-GGUF"
    assert len(hub.requests) == requests  # nothing of this asked the hub again
    assert "acme/tiny-GGUF at 0123456789ab" in succeed(capsys, "show", "acme/tiny-GGUF")


def test_safetensors_of_the_hub_with_their_recommended_settings(
    hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, "pull", "acme/tiny:q8", "--keep-download")
    told = json.loads(succeed(capsys, "show", "acme/tiny:q8", "--json"))
    assert (told["dtype"], told["licence"]) == ("q8", "mit")
    assert told["recommended"] == {"temperature": 0.6}
    assert "temperature 0.6" in succeed(capsys, "show", "acme/tiny:q8")
    requests = len(hub.requests)
    succeed(capsys, "pull", "acme/tiny:f16", "--offline")  # from the kept download
    assert len(hub.requests) == requests
    listed = json.loads(succeed(capsys, "ls", "--json"))
    assert [row["name"] for row in listed["models"]] == ["acme--tiny--f16", "acme--tiny--q8"]


def test_an_unsupported_architecture_fails_before_the_download(
    hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = fail(capsys, "pull", "acme/other")
    assert code == 5
    assert "'Mamba' is not supported" in line
    assert not list((home / "models").rglob("*.safetensors"))
    assert json.loads(succeed(capsys, "ls", "--json"))["unfinished"] == []


def test_a_plan_of_a_model_on_the_hub(
    hub: FakeHub, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads(succeed(capsys, "plan", "acme/tiny", "--json"))
    assert told["name"] == "acme/tiny"
    assert told["dtypes"] == ["bf16"]
    assert fail(capsys, "plan", "acme/nothing")[0] == 3
    assert not list((home / "models").glob("*"))


def test_an_interrupted_download_is_listed_and_given_up(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashllm import api

    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "convert_checkpoint", interrupt)
    assert main(["pull", "acme/tiny-GGUF"]) == 130
    capsys.readouterr()
    assert main(["ls"]) == 0
    assert "unfinished: acme/tiny-GGUF" in capsys.readouterr().err
    assert fail(capsys, "rm", "acme/tiny-gguf")[0] in (2, 130)
    succeed(capsys, "rm", "-y", "acme/tiny-gguf")
    assert json.loads(succeed(capsys, "ls", "--json"))["unfinished"] == []
    assert fail(capsys, "rm", "-y", "acme/tiny-gguf")[0] == 3


def test_a_file_is_chatted_with_and_found_again(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pipe() -> None:
        stdin = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"hello"))
        monkeypatch.setattr("sys.stdin", stdin)

    pipe()
    assert main(["chat", "-m", str(tiny_gguf), "--offline", *FAST]) == 0
    first = capsys.readouterr()
    assert f"converting {tiny_gguf} to " in first.err
    pipe()
    assert main(["chat", str(tiny_gguf), "--offline", *FAST]) == 0
    second = capsys.readouterr()
    assert "converting" not in second.err
    assert second.out == first.out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["pull", "tiny", "--revision", "v1"], 2, "owner/name"),
        (["pull", "acme/tiny", "--offline"], 3, "once with a network"),
        (["run", "-m", "missing.gguf", "-p", "x"], 3, "no model called"),
        (["run", "-m", "acme/tiny", "-p", "x", "--offline"], 3, "flashllm pull acme/tiny"),
        (["pull", "qwen3:8b", "--offline"], 3, "Qwen/Qwen3-8B:q4"),
        (["pull", "smollm2:q8"], 2, "one form only"),
        (["chat", "a.gguf", "-m", "b.gguf"], 2, "two models"),
    ],
)
def test_failures_are_one_line(
    args: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, line = fail(capsys, *args)
    assert (found, words in line) == (code, True), line


def test_known_models_are_listed_with_size_and_licence(capsys: pytest.CaptureFixture[str]) -> None:
    lines = succeed(capsys, "ls", "--available").splitlines()
    (llama,) = [line for line in lines if "llama-3.1-8b-instruct" in line]
    assert llama.split() == [
        "llama-3.1-8b-instruct", "8.0B", "16.1", "GB", "q4", "llama3.1", "(gated)",
    ]  # fmt: skip
    models = json.loads(succeed(capsys, "ls", "--available", "--json"))["models"]
    assert len(models) == len(lines) - 1 >= 20
    assert all(model["licence"] and model["parameters"] > 0 for model in models)


def test_every_known_model_can_be_planned_without_a_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model in json.loads(succeed(capsys, "ls", "--available", "--json"))["models"]:
        assert main(["plan", model["name"], "--json", "--mem", "1TB"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["family"] == model["family"]
        assert 0.4 < told["weight_bytes"] / model["parameters"] < 1.3
