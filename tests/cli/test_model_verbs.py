"""Tests of the verbs that open a model, on a tiny one: what they print, and how they fail."""

from __future__ import annotations

import errno
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import sparse_model
import tiny

from flashllm.cli.main import main

FAST = ["--backend", "reference", "--temp", "0", "-n", "6"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.model_dir(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def pipe_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stdin = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(data))
    monkeypatch.setattr("sys.stdin", stdin)


def succeed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code = main(args)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def fail(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    code = main(args)
    captured = capsys.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("flashllm: error: ")
    return code, line


def test_run_answers_on_standard_output(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)
    assert answer.strip()
    assert answer == succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)


def test_every_way_of_reading_gives_the_same_answer(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)
    for mode in ("direct", "pread", "mmap"):
        flags = ["-m", model, "--io", mode]
        assert succeed(capsys, "run", *flags, "-p", "hello", *FAST) == answer


def test_a_way_the_file_system_lacks_is_told_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashllm.flash.files import DirectFile
    from flashllm.kernels import bandwidth

    def refuse(self: DirectFile, path: Path, scratch: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(DirectFile, "__init__", refuse)
    monkeypatch.setattr(bandwidth, "measure", lambda threads, size: 10.0)
    (tmp_path / "text").write_text("the capital of france is paris")
    verbs = {
        "run": ["-p", "hello", *FAST],
        "eval": [str(tmp_path / "text"), "--backend", "reference"],
        "bench": ["-p", "4", "-n", "2", "-r", "1", "-t", "1,2"],
    }
    for verb, flags in verbs.items():
        for mode in ("direct", "auto"):
            assert main([verb, "-m", model, "--io", mode, *flags]) == 0
            err = capsys.readouterr().err
            assert err.count("this file system cannot read in mode 'direct'") == 1


def test_run_json_holds_the_same_text_and_what_it_cost(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)
    told = json.loads(succeed(capsys, "run", "-m", model, "-p", "hello", "--json", *FAST))
    assert told["text"].rstrip("\n") == text.rstrip("\n")
    assert told["reason"] in ("stop", "length")
    assert 1 <= told["stats"]["generated_tokens"] <= 6


def test_run_takes_its_prompt_from_flag_file_or_pipe(
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "prompt").write_text("hello")
    wanted = succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)
    assert succeed(capsys, "run", "-m", model, "-f", str(tmp_path / "prompt"), *FAST) == wanted
    pipe_in(monkeypatch, b"hello")
    assert succeed(capsys, "run", "-m", model, *FAST) == wanted


def test_run_raw_continues_without_the_template(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    through = json.loads(succeed(capsys, "run", "-m", model, "-p", "the", "--json", *FAST))
    raw = json.loads(succeed(capsys, "run", "-m", model, "--raw", "-p", "the", "--json", *FAST))
    assert raw["stats"]["prompt_tokens"] < through["stats"]["prompt_tokens"]


def test_chat_answers_a_pipe_and_exits(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = succeed(capsys, "run", "-m", model, "-p", "hello", *FAST)
    pipe_in(monkeypatch, b"hello\n")
    assert main(["chat", "-m", model, "--stats", *FAST]) == 0
    captured = capsys.readouterr()
    assert captured.out == wanted
    assert "tok/s" in captured.err


def test_a_session_file_goes_on(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["-m", model, "--session", str(tmp_path / "talk"), "--json", *FAST]
    first = json.loads(succeed(capsys, "run", "-p", "hello", *flags))["stats"]
    second = json.loads(succeed(capsys, "run", "-p", "again", *flags))["stats"]
    assert first["cached_tokens"] == 0
    assert second["cached_tokens"] >= first["prompt_tokens"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-m", "nothing", "-p", "x"], 3, "no model called"),
        (["-p", "x", "--offline"], 3, "once with a network"),
        (["-m", "MODEL", "-p", " "], 2, "empty"),
        (["-m", "MODEL", "-p", "x", "-f", "y"], 2, "not both"),
        (["-m", "MODEL", "-f", "missing"], 2, "no file"),
        (["-m", "MODEL", "-p", "x", "--raw", "-sys", "y"], 2, "--raw"),
        (["-m", "MODEL", "-p", "x", "--mem", "1MB"], 6, "1 MB"),
        (["-m", "MODEL", "-p", "x", "-c", "100000"], 2, "128"),
        (["-m", "MODEL", "-p", "x" * 600, *FAST], 9, "context"),
        (["-m", "MODEL", "-p", "x", "-n", "0"], 2, "max_tokens"),
    ],
)
def test_run_fails_in_one_line(
    args: list[str], code: int, words: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, line = fail(capsys, "run", *[model if arg == "MODEL" else arg for arg in args])
    assert found == code
    assert words in line


def test_an_empty_pipe_is_no_message(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe_in(monkeypatch, b" \n")
    assert fail(capsys, "chat", "-m", model)[0] == 2


def test_show(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = succeed(capsys, "show", model)
    assert "llama" in text
    assert "apache-2.0" in text
    told = json.loads(succeed(capsys, "show", "--json", model))
    weights = sum(entry["weights"] for entry in told["weights"].values())
    embedding, layer = 320 * 64, 2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64
    assert weights == embedding + 2 * layer
    assert told["unit_bytes"] >= sum(entry["bytes"] for entry in told["weights"].values())
    assert succeed(capsys, "show", "--template", model) == told["chat_template"]


def test_verify_finds_a_flipped_bit(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "every one as written" in succeed(capsys, "verify", model)
    assert json.loads(succeed(capsys, "verify", "--json", model))["units"] > 0
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    units = next(copy.glob("units*.safetensors"))
    data = bytearray(units.read_bytes())
    data[8192] ^= 1
    units.write_bytes(data)
    code, line = fail(capsys, "verify", str(copy))
    assert code == 4
    assert units.name in line


def test_convert_to_the_store(
    tiny_gguf: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = succeed(capsys, "convert", str(tiny_gguf), "--dtype", "q8").strip()
    assert folder == str(home / "models" / "tiny")
    assert json.loads(succeed(capsys, "show", "tiny", "--json"))["dtype"] == "q8"
    assert fail(capsys, "convert", str(tiny_gguf))[0] == 2
    succeed(capsys, "convert", str(tiny_gguf), "--name", "other")
    succeed(capsys, "rm", "-y", "other")
    assert [path.name for path in (home / "models").iterdir()] == ["tiny"]


def test_convert_to_a_folder(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_gguf.parent / "here"
    assert succeed(capsys, "convert", str(tiny_gguf), str(folder)).strip() == str(folder)
    assert (folder / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("content", "code"), [(None, 3), (b"", 4), (b"not a gguf file", 4), (b"GGUF\x63\0\0\0", 5)]
)
def test_convert_of_anything_else_leaves_nothing(
    content: bytes | None,
    code: int,
    tmp_path: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "x.gguf"
    if content is not None:
        source.write_bytes(content)
    found, line = fail(capsys, "convert", str(source))
    assert (found, "x.gguf" in line) == (code, True)
    assert not home.exists() or not list((home / "models").glob("*"))


def test_eval_perplexity(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_text(tiny.CORPUS)
    flags = ["-m", model, "--backend", "reference", "--json"]
    told = json.loads(succeed(capsys, "eval", str(text), *flags))
    assert 1 < told["perplexity"] < 10_000
    assert told["tokens"] > 20
    same = json.loads(succeed(capsys, "eval", str(text), "--against", "reference", *flags))
    assert same["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert same["top1_agreement"] == 1
    assert same["perplexity"] == pytest.approx(told["perplexity"])
    shown = succeed(capsys, "eval", str(text), "--against", "reference", *flags[:-1])
    assert "top-1 agreement  100.00 %" in shown
    flags += ["--against", "reference", "--kv-dtype", "f16"]
    rounded = json.loads(succeed(capsys, "eval", str(text), *flags))
    assert rounded["kv_dtype"] == "f16"
    assert rounded["mean_kl"] > 1e-9


def test_eval_needs_a_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(capsys, "eval", "-m", model)[0] == 2
    assert fail(capsys, "eval", "-m", model, "--against", "reference")[0] == 2
    assert fail(capsys, "eval", "missing.txt", "-m", model)[0] == 2


def test_bench(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flashllm.kernels import bandwidth

    monkeypatch.setattr(bandwidth, "measure", lambda threads, size: 10.0 * threads)
    flags = ["bench", "-m", model, "-p", "8", "-n", "4", "-r", "2", "-t", "1,2"]
    told = json.loads(succeed(capsys, *flags, "--json"))
    assert [result["threads"] for result in told["results"]] == [1, 2]
    assert {result["kv_dtype"] for result in told["results"]} == {"f16"}
    assert "keys and values in f32" in succeed(capsys, *flags, "--kv-dtype", "f32")
    for result in told["results"]:
        low, high = result["decode_range"]
        assert 0 < low <= result["decode_tok_s"] <= high
        assert result["ttft_s"] > 0
        share = result["weight_bytes"] * result["decode_tok_s"] / result["bandwidth"]
        assert result["bandwidth_share"] == pytest.approx(share)
        assert result["peak_rss"] > result["peak_private"] > result["weight_bytes"]
        assert [len(run["token_ms"]) for run in result["runs"]] == [4, 4]
        assert all(ms > 0 for run in result["runs"] for ms in [run["prompt_ms"], *run["token_ms"]])
        assert {run["hit_rate"] for run in result["runs"]} == {1.0}
    assert "tok/s" in succeed(capsys, *flags)
    assert fail(capsys, "bench", "-m", model, "-p", "8", "-t", "0")[0] == 2
    assert "context" in fail(capsys, "bench", "-m", model, "-p", "500", "-t", "1")[1]
    assert "-c 9" in fail(capsys, "bench", "-m", model, "-p", "8", "-n", "4", "-c", "9")[1]


def test_eval_sparse_compares_with_all_neurons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(sparse_model.write(tmp_path))
    (tmp_path / "text").write_text(tiny.CORPUS)
    flags = ["eval", str(tmp_path / "text"), "-m", model, "-c", "40", "--sparse"]
    exact = json.loads(succeed(capsys, *flags, "gate", "--json"))
    assert exact["sparse"] == "gate"
    assert (exact["mean_kl"], exact["top1_agreement"]) == (0.0, 1.0)
    assert exact["perplexity"] == exact["reference_perplexity"]
    assert 0.3 < exact["active_share"] < 0.7
    dense = json.loads(succeed(capsys, *flags[:-1], "--json"))
    assert dense["sparse"] is None
    assert dense["perplexity"] == pytest.approx(
        exact["perplexity"], rel=0.05
    )  # but a tail's tokens
    limit = str(sparse_model.budget(Path(model), "predictor", 2.0))
    lossy = json.loads(succeed(capsys, *flags, "predictor", "--mem", limit, "--json"))
    assert exact["active_share"] < lossy["active_share"] < exact["active_share"] + 0.1
    assert lossy["neurons_read_per_token"] > 0
    assert lossy["calibrated_recall"] == pytest.approx(sparse_model.RECALL)
    assert lossy["perplexity"] == pytest.approx(lossy["reference_perplexity"], rel=0.01)
    told = succeed(capsys, *flags, "predictor", "--window", "0", "--mem", limit)
    assert "sparse: predictor (lossy)" in told
    assert "all neurons" in told
    assert "when calibrated  recall 96%" in told


def test_run_sparse_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(sparse_model.write(tmp_path, calibrated=False))
    flags = ["run", "-m", model, "-p", "hello", "--temp", "0", "-n", "6", "-c", "64"]
    dense = succeed(capsys, *flags)
    assert main([*flags, "--sparse", "gate", "--stats"]) == 0
    told = capsys.readouterr()
    assert told.out == dense
    assert "sparse: gate (exact) · active " in told.err
    facts = json.loads(succeed(capsys, *flags, "--sparse", "oracle", "--json"))
    assert facts["sparse"] == "oracle"
    assert 0.3 < facts["stats"]["active_share"] < 0.7
    assert fail(capsys, *flags, "--sparse", "predictor")[0] == 5
    assert fail(capsys, *flags, "--window", "3")[0] == 2
