"""A conversion that is interrupted goes on, from any point, to the bytes it would have made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hf

from flashllm.convert import convert, units
from flashllm.convert.reading import TensorReader
from flashllm.errors import Cancelled, DiskFull, InvalidInput
from flashllm.flash import writer
from flashllm.flash.partial import partial_folder

OPTIONS: dict[str, Any] = {"dtype": "q4", "codec": "tile"}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    monkeypatch.setattr(units, "JOB_WEIGHTS", 4096)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def stop_after(steps: int) -> Any:
    """A progress callback that raises at its so manieth call."""
    left = iter(range(steps))

    def on_progress(done: int, total: int) -> None:
        if next(left, None) is None:
            raise Cancelled("stop")

    return on_progress


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize("kind", ["gguf", "hf"])
def test_stopped_at_any_step(tmp_path: Path, kind: str, codec: str) -> None:
    if kind == "gguf":
        source = tiny.write_gguf(tmp_path / "m.gguf", tied=False)
    else:
        source = tiny_hf.write_hf(tmp_path / "hf", shards=3, dtype="BF16")
    steps: list[tuple[int, int]] = []
    options = {"dtype": "q4", "codec": codec}
    on_progress = lambda *at: steps.append(at)  # noqa: E731
    whole = content(convert(source, tmp_path / "whole", on_progress=on_progress, **options))
    assert steps[-1][0] == steps[-1][1]
    kept = 0
    for stop in range(0, len(steps), 3):
        target = tmp_path / f"m{stop}"
        with pytest.raises(Cancelled):
            convert(source, target, on_progress=stop_after(stop), **options)
        kept += partial_folder(target).exists()
        again: list[tuple[int, int]] = []
        convert(source, target, on_progress=lambda *at, seen=again: seen.append(at), **options)
        assert again == sorted(again)
        assert again[-1] == steps[-1]
        assert content(target) == whole
        assert not partial_folder(target).exists()
    assert kept > 1


def test_what_is_done_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    read: list[str] = []
    real = TensorReader.rows

    def rows(self: TensorReader, tensor: Any, first: int, count: int) -> Any:
        read.append(tensor.name)
        return real(self, tensor, first, count)

    steps: list[int] = []
    convert(source, tmp_path / "whole", on_progress=lambda done, total: steps.append(done))
    with pytest.raises(Cancelled):
        convert(source, tmp_path / "m", on_progress=stop_after(len(steps) - 1))
    monkeypatch.setattr(TensorReader, "rows", rows)
    said: list[str] = []
    convert(source, tmp_path / "m", on_message=said.append)
    assert said == ["going on after 4 of 5 groups of an earlier conversion"]
    assert {name for name in read if not name.endswith("norm.weight")} == {
        f"blk.1.ffn_{name}.weight" for name in ("gate", "up", "down")
    }


KILLED = """
import os, sys
from pathlib import Path
from flashllm.convert import convert, units
from flashllm.flash import output, writer

writer.SYNC_BYTES, units.JOB_WEIGHTS, output.STAGE_BYTES = 0, 4096, 8192
home, call, left = (os, sys.argv[3], int(sys.argv[4]))
real = getattr(home, call)

def killed(*args):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), 9)
    return real(*args)

setattr(home, call, killed)
convert(Path(sys.argv[1]), Path(sys.argv[2]), dtype="q4")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs SIGKILL, and writes past the cache")
@pytest.mark.parametrize(("call", "number"), [("fsync", 9), ("fsync", 12), ("pwrite", 14)])
def test_killed_and_gone_on_with(tmp_path: Path, call: str, number: int) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", layers=3)
    whole = content(convert(source, tmp_path / "whole", dtype="q4"))
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "m"), call, str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "m").exists()
    said: list[str] = []
    convert(source, tmp_path / "m", dtype="q4", on_message=said.append)
    assert "going on after" in said[0]
    assert content(tmp_path / "m") == whole


@pytest.mark.parametrize("change", ["weights", "options"])
def test_another_source_or_other_options_start_over(tmp_path: Path, change: str) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    with pytest.raises(Cancelled):
        convert(source, tmp_path / "m", dtype="q4", on_progress=stop_after(14))
    assert partial_folder(tmp_path / "m").exists()
    if change == "weights":
        tiny.write_gguf(source, seed=1)
        os.utime(source, ns=(1, 1))
    said: list[str] = []
    dtype = "q4" if change == "weights" else "q8"
    convert(source, tmp_path / "m", dtype=dtype, on_message=said.append)
    assert said == [
        "starting over: an earlier conversion was of another source, or had other options"
    ]
    assert content(tmp_path / "m") == content(convert(source, tmp_path / "n", dtype=dtype))


def test_restart(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    with pytest.raises(Cancelled):
        convert(source, tmp_path / "m", on_progress=stop_after(14))
    said: list[str] = []
    convert(source, tmp_path / "m", restart=True, on_message=said.append)
    assert said == ["starting over, as told"]


def test_two_at_once(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    refused: list[str] = []

    def on_progress(done: int, total: int) -> None:
        with pytest.raises(InvalidInput, match="another process is writing it now") as caught:
            convert(source, tmp_path / "m")
        refused.append(str(caught.value))

    convert(source, tmp_path / "m", on_progress=on_progress)
    assert refused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "m.gguf"]


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", hidden=128, ffn=512, layers=4)
    whole = content(convert(source, tmp_path / "whole", dtype="q8"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        # As on a system that can neither preallocate nor tell what is free.
        monkeypatch.setattr(writer.OutputFile.__init__, "__defaults__", (None,))
        monkeypatch.setattr(writer.ModelWriter, "check_room", lambda self, nbytes: None)
        with pytest.raises(DiskFull, match="run the same command again to go on") as caught:
            convert(source, disk / "m", dtype="q8")
        assert "\n" not in str(caught.value)
        assert partial_folder(disk / "m").exists()
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        said: list[str] = []
        convert(source, disk / "m", dtype="q8", on_message=said.append)
        assert "going on after" in said[0]
        assert content(disk / "m") == whole
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize("dtype", ["keep", "f16", "q8", "q4m"])
def test_bytes_do_not_depend_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, codec: str
) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", dtype="Q8_0", ffn=160)
    options: dict[str, Any] = {"dtype": dtype, "codec": codec}
    one = content(convert(source, tmp_path / "one", threads=1, **options))
    four = content(convert(source, tmp_path / "four", threads=4, **options))
    assert one == four
    monkeypatch.setattr(units, "JOB_WEIGHTS", 1 << 21)
    large = content(convert(source, tmp_path / "large", **options))
    assert one["units-00001.safetensors"] == large["units-00001.safetensors"]
