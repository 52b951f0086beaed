"""flashllm convert: interrupted, gone on with, removed, and what it says at the end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flashllm.cli.convert import describe_loss
from flashllm.cli.main import main
from flashllm.convert import units
from flashllm.convert.weights import Weights
from flashllm.flash import writer


@pytest.fixture(autouse=True)
def small_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    monkeypatch.setattr(units, "JOB_WEIGHTS", 4096)


def interrupt(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Press Ctrl-C while the last layer is converted."""
    real = Weights.tiles

    def interrupted(self: Weights, role: str, first: int, count: int) -> Any:
        if role == "layers.1.ffn_down":
            raise KeyboardInterrupt
        return real(self, role, first, count)

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "tiles", interrupted)
        assert main(["convert", str(source), "--dtype", "q4"]) == 130


def test_an_interrupted_conversion_goes_on(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, tiny_gguf)
    assert "what is done is kept: the same command goes on" in capsys.readouterr().err
    assert main(["convert", str(tiny_gguf), "--dtype", "q4"]) == 0
    told = capsys.readouterr()
    assert "going on after 4 of 5 groups of an earlier conversion" in told.err
    assert "weights off by" in told.err
    assert "GB/s" not in told.err, "the rate of a part, told as that of the whole"
    assert Path(told.out.strip()).is_dir()


def test_a_whole_conversion_tells_its_rate(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tiny_gguf), "--dtype", "q4"]) == 0
    assert re.search(r"[0-9.]+ s, [0-9.]+ GB/s$", capsys.readouterr().err, re.MULTILINE)


def test_or_starts_over(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, tiny_gguf)
    assert main(["convert", str(tiny_gguf), "--dtype", "q4", "--restart", "-t", "1"]) == 0
    assert "starting over, as told" in capsys.readouterr().err


def test_or_is_removed(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(monkeypatch, tiny_gguf)
    assert main(["rm", "tiny", "-y"]) == 0
    assert "removed" in capsys.readouterr().err
    assert main(["rm", "tiny", "-y"]) == 3


def test_what_was_lost_in_a_few_words() -> None:
    assert describe_loss(None) == "no weight changed"
    assert describe_loss({"embed": 0.0051}) == "weights off by 0.51 % (embed)"
    both = describe_loss({"ffn_up": 0.0754, "attn_v": 0.0798})
    assert both == "weights off by 7.5 % (ffn_up) to 8 % (attn_v)"
