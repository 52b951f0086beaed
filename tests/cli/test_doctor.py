"""Tests of doctor: what it tells, and the disk's curve it measures once and keeps."""

from __future__ import annotations

import datetime
import json
import shutil
import sys
from pathlib import Path

import pytest
import tiny

from flashllm.cli import curve_file, disk_rate
from flashllm.cli.main import main
from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import InvalidInput
from flashllm.flash import files
from flashllm.kernels import bandwidth

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CURVE = DiskCurve(LONG_AGO, (Point("direct", 1 << 20, 4, 1.25e9),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny but for its 19 MB, of which blocks of up to 1 MiB can be read."""
    return tiny.model_dir(tmp_path_factory.mktemp("model"), ffn=12288)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the curve is kept, in a home of its own; memory is not measured."""
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(curve_file, "curve_path", lambda folder: tmp_path / "disks" / "a.json")
    monkeypatch.setattr(bandwidth, "measure", lambda threads, size: 10.0)
    monkeypatch.setattr(disk_rate, "SECONDS", 0.01)
    return tmp_path / "disks" / "a.json"


def succeed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code = main(["doctor", *args])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def add_model(source: Path, home: Path) -> None:
    shutil.copytree(source, home / "models" / "mine")


def test_without_a_model(kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not measured: there is no model" in succeed(capsys)
    told = json.loads(succeed(capsys, "--json", "--measure"))
    assert told["disk_read"] is None
    assert told["models"]["count"] == 0
    assert told["memory"]["available"] <= told["memory"]["total"]
    assert not kept.parent.exists()
    assert str(tmp_path / "home") in succeed(capsys)


@pytest.mark.skipif(sys.platform != "linux", reason="measures past the page cache")
def test_the_disk_is_measured_once(
    model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_model(model, tmp_path / "home")
    told = json.loads(succeed(capsys, "--json"))
    curve = DiskCurve.from_json(told["disk_read"])
    assert "pread" in curve.modes
    assert curve.blocks("pread") == [16 << 10, 64 << 10, 256 << 10, 1 << 20]
    assert curve.at_once("pread") == [1, 4, 8, 16]
    assert datetime.datetime.now(datetime.UTC) - curve.measured < datetime.timedelta(minutes=5)
    assert curve_file.load(kept) == curve
    assert [path.name for path in kept.parent.iterdir()] == ["a.json"]
    shown = succeed(capsys)
    assert all(line in shown for io in curve.modes for line in curve.table(io))

    curve_file.save(CURVE, kept)
    assert json.loads(succeed(capsys, "--json"))["disk_read"] == CURVE.to_json()
    assert "days ago" in (shown := succeed(capsys))
    assert "1.25 GB/s" in shown
    again = succeed(capsys, "--measure")
    assert "days ago" not in again
    assert curve_file.load(kept) != CURVE


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
        disk_rate.measure(small, 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="measures past the page cache")
def test_a_mode_the_file_system_lacks_is_left_out(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: files.DirectFile, path: Path, scratch: files.Scratch) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(files.DirectFile, "__init__", refuse)
    seen = []
    curve = disk_rate.measure(model, 0.001, lambda done, total: seen.append((done, total)))
    assert curve.modes == ["pread"]
    assert seen == [(i, 32) for i in range(32)]


def test_curve_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHLLM_CACHE", str(tmp_path / "cache"))
    path = curve_file.curve_path(tmp_path / "not" / "there" / "yet")
    assert path.parent == tmp_path / "cache" / "disks"
    assert path == curve_file.curve_path(tmp_path)
    assert curve_file.load(path) is None
    assert not path.parent.exists()
    curve_file.save(CURVE, path)
    assert curve_file.load(path) == CURVE
    for damaged in (b"", b"{}", b"\xff", b"[" * 100_000, b"1" * 5000, path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        assert curve_file.load(path) is None


def test_a_curve_that_cannot_be_kept(
    model: Path, kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sys.platform != "linux":
        pytest.skip("measures past the page cache")
    add_model(model, tmp_path / "home")
    kept.parent.write_text("a file, not a folder")
    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert "cannot keep" in captured.err
    assert "measured just now" in captured.out
