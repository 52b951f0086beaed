"""Tests of doctor: what it tells, and the disk's curve it measures once and keeps."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from flashllm import read_speed_file
from flashllm.cli import disk_rate, measuring
from flashllm.cli.main import main
from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import InvalidInput
from flashllm.flash import files
from flashllm.kernels import bandwidth
from flashllm.read_speed import MemoryRate, ReadSpeed

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CURVE = DiskCurve(LONG_AGO, (Point("direct", 1 << 20, 4, 1.25e9),))
SPEED = ReadSpeed(CURVE, (MemoryRate(1, 12e9),))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="measures past the page cache")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny but for its 19 MB, of which blocks of up to 1 MiB can be read."""
    return tiny.model_dir(tmp_path_factory.mktemp("model"), ffn=12288)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where speeds are kept, in a home of its own; memory is not measured, nor the compiler's
    library read."""
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(read_speed_file, "file_for", lambda folder: tmp_path / "speed" / "a.json")
    monkeypatch.setattr(bandwidth, "measure", lambda threads, size: 10.0)
    monkeypatch.setattr(disk_rate, "SECONDS", 0.01)
    monkeypatch.setattr(measuring.llvmlite, "__file__", str(tmp_path / "none" / "__init__.py"))
    return tmp_path / "speed" / "a.json"


def succeed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code = main(["doctor", *args])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def add_model(source: Path, home: Path) -> None:
    shutil.copytree(source, home / "models" / "mine")


def test_without_a_large_file(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "no large file" in captured.err
    assert "not measured" in captured.out
    told = json.loads(succeed(capsys, "--json", "--measure"))
    assert told["disk_read"] is None
    assert told["memory_read"]["1"] == 10e9
    assert told["models"]["count"] == 0
    assert told["memory"]["available"] <= told["memory"]["total"]
    found = read_speed_file.load(kept)
    assert found is not None
    assert found.disk is None
    assert str(tmp_path / "home") in succeed(capsys)


@LINUX
def test_without_a_model_the_compilers_library_is_read(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = tmp_path / "none" / "binding" / "library.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(bytes(8 << 20))
    before = sorted(tmp_path.rglob("*"))
    assert json.loads(succeed(capsys, "--json"))["disk_read"]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, kept.parent, kept])


@LINUX
def test_speeds_are_measured_once(
    model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(model, tmp_path / "home")
    told = json.loads(succeed(capsys, "--json"))
    curve = DiskCurve.from_json(told["disk_read"])
    assert "pread" in curve.modes
    assert curve.blocks("pread") == [16 << 10, 64 << 10, 256 << 10, 1 << 20]
    assert curve.at_once("pread") == [1, 4, 8, 16]
    assert datetime.datetime.now(datetime.UTC) - curve.measured < datetime.timedelta(minutes=5)
    found = read_speed_file.load(kept)
    assert found is not None
    assert found.disk == curve
    shown = succeed(capsys)
    assert all(line in shown for io in curve.modes for line in curve.table(io))

    read_speed_file.save(SPEED, kept)
    told = json.loads(succeed(capsys, "--json"))
    assert told["disk_read"] == CURVE.to_json()
    assert told["memory_read"] == {"1": 12e9}
    assert "days ago" in (shown := succeed(capsys))
    assert "1.25 GB/s" in shown
    again = succeed(capsys, "--measure")
    assert "days ago" not in again
    assert read_speed_file.load(kept) != SPEED


@LINUX
def test_a_disk_that_could_not_be_measured_is_once_there_is_a_model(
    model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read_speed_file.save(ReadSpeed(None, SPEED.memory), kept)
    assert json.loads(succeed(capsys, "--json"))["disk_read"] is None
    add_model(model, tmp_path / "home")
    assert json.loads(succeed(capsys, "--json"))["disk_read"]


def test_a_model_too_small_to_measure_with(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tiny.model_dir(tmp_path)
    add_model(small, tmp_path / "home")
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "cannot measure the disk's read rate" in captured.err
    assert "not measured" in captured.out
    with pytest.raises(InvalidInput):
        disk_rate.measure(small / "manifest.json", 0.01)


@LINUX
def test_a_mode_the_file_system_lacks_is_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: files.DirectFile, path: Path, scratch: files.Scratch) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files.DirectFile, "__init__", refuse)
    seen = []
    file = model / "units-00001.safetensors"
    curve = disk_rate.measure(file, 0.001, lambda done, total: seen.append((done, total)))
    assert curve.modes == ["pread"]
    assert seen == [(i, 32) for i in range(32)]


@LINUX
def test_speeds_that_cannot_be_kept(
    model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(model, tmp_path / "home")
    kept.parent.write_text("a file, not a folder")
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "cannot keep" in captured.err
    assert "measured just now" in captured.out
