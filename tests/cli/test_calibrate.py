"""flashllm calibrate: what it prints, that it goes on when interrupted, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import streamed
import tiny

from flashllm.cli.main import main
from flashllm.convert import calibration, predictor_fit
from flashllm.convert.calibration_scratch import scratch_folder


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A calibration of little work: the model of OPT's kind, a new folder, a text."""
    monkeypatch.setattr(predictor_fit, "EPOCHS", 1)
    model = streamed.write(tmp_path / "model", codec="row", positions=True)
    for file in tiny.model_dir(tmp_path).glob("*token*"):
        shutil.copy(file, model / file.name)
    text = tmp_path / "text.txt"
    text.write_text(tiny.CORPUS * 2)
    flags = ["--text", str(text), "--tokens", "190", "--rank", "32", "-t", "1"]
    return ["calibrate", str(model), str(tmp_path / "new"), *flags]


def test_it_goes_on_prints_the_folder_and_tells_each_layer(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Path(arguments[2])

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration, "rewrite", interrupted)
        assert main(arguments) == 130
    told = capsys.readouterr()
    assert "what is done is kept: the same command goes on" in told.err
    assert scratch_folder(target).is_dir()
    assert main(arguments) == 0
    told = capsys.readouterr()
    assert told.out.strip() == str(target)
    assert "running the model" not in told.err, "what was collected was collected again"
    assert "fitting predictors to 5 layers" in told.err
    lines = told.err.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("layer  rank  recall"))
    assert [line.split()[:2] for line in lines[begin + 1 : begin + 6]] == [
        [str(i), "32"] for i in range(streamed.LAYERS)
    ]
    assert main(["verify", str(target)]) == 0
    assert main(arguments) == 2, "a folder that exists was calibrated into"


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--rank", "many"], 2),
        (["--rank", "33"], 2),
        (["--recall", "0"], 2),
        (["--text", "missing.txt"], 2),
    ],
)
def test_wrong_flags_are_told(arguments: list[str], flags: list[str], code: int) -> None:
    assert main([*arguments, *flags]) == code
    assert not Path(arguments[2]).exists()


def test_a_model_without_a_relu_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silu = tiny.model_dir(tmp_path, codec="row")
    assert main(["calibrate", str(silu), *arguments[2:]]) == 5
    assert "silu" in capsys.readouterr().err
