"""Writing a model: whole or not at all, whatever fails and whenever."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from flashllm.errors import CorruptModel, DiskFull, InvalidInput, ModelIOError
from flashllm.flash.format import read_model
from flashllm.flash.manifest import Manifest
from flashllm.flash.output import OutputFile
from flashllm.flash.partial import sync_folder
from flashllm.flash.parts import MatrixPart
from flashllm.flash.reader import UnitReader
from flashllm.flash.units_file import GroupPlan
from flashllm.flash.writer import ModelWriter

SMALL = b"\x02\0\0\0\0\0\0\0{}"


def plans(groups: int = 3) -> list[GroupPlan]:
    return [GroupPlan(f"g{i}", (MatrixPart.plan("w", "f32", 64, 100, 0),)) for i in range(groups)]


def units(groups: list[GroupPlan], seed: int = 0) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for plan in groups:
        for length in plan.lengths():
            yield rng.integers(0, 256, int(length), np.uint8)


def manifest(writer: ModelWriter, name: str = "made") -> Manifest:
    return Manifest(name, "test", {}, "tile", "keep", writer.groups, {}, None, None, writer.files)


def write(
    target: Path, *, overwrite: bool = False, shard_bytes: int = 1 << 30, seed: int = 0
) -> Path:
    with ModelWriter(target, overwrite=overwrite) as writer:
        writer.add_file("small.safetensors", SMALL)
        writer.add_units(plans(), units(plans(), seed), shard_bytes)
        return writer.publish(manifest(writer))


def everything(model: Path) -> list[bytes]:
    opened = read_model(model)
    with UnitReader(opened) as reader:
        read = []
        for group in opened.groups.values():
            out = [np.zeros(int(length), np.uint8) for length in group.lengths]
            reader.read_units(group, range(group.units), out)
            read += [data.tobytes() for data in out]
        return read


@pytest.mark.parametrize(("shard_bytes", "files"), [(1 << 30, 1), (70_000, 2), (1, 3)])
def test_shards_hold_the_same_units(tmp_path: Path, shard_bytes: int, files: int) -> None:
    target = write(tmp_path / "m", shard_bytes=shard_bytes)
    assert len(list(target.glob("units-*"))) == files
    assert everything(target) == [unit.tobytes() for unit in units(plans())]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_shard_of_another_model_is_refused(tmp_path: Path) -> None:
    ours = write(tmp_path / "ours", seed=1)
    theirs = write(tmp_path / "theirs", seed=2)
    shutil.copy(theirs / "units-00001.safetensors", ours)
    with pytest.raises(CorruptModel, match=r"units-00001.*not the one"):
        read_model(ours)


def test_an_existing_model_is_kept_unless_told(tmp_path: Path) -> None:
    target = write(tmp_path / "m", seed=1)
    before = everything(target)
    with pytest.raises(InvalidInput, match="exists"):
        write(target, seed=2)
    assert everything(target) == before
    write(target, overwrite=True, seed=2)
    assert everything(target) != before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_of_two_writers_the_second_fails_cleanly(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with ModelWriter(target) as first:
        with pytest.raises(InvalidInput, match="another process is writing it now"):
            write(target)
        first.add_file("small.safetensors", SMALL)
        first.add_units(plans(), units(plans(), 3))
        first.publish(manifest(first))
    assert everything(target) == [unit.tobytes() for unit in units(plans(), 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "m"
    with pytest.raises(InvalidInput, match="appeared"), ModelWriter(target) as late:
        late.add_file("small.safetensors", SMALL)
        target.mkdir()
        late.publish(manifest(late, "late"))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("call", ["fsync", "open", "rename", "posix_fallocate"])
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_any_failing_call_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    """The Nth call of a kind fails, for every N until none does."""
    expected = DiskFull if error == errno.ENOSPC else ModelIOError
    real = {"fsync": os.fsync, "open": Path.open, "rename": Path.rename}.get(call)
    for n in range(1000):
        target, calls = tmp_path / f"m{n}", iter(range(1 << 30))

        def failing(*args: object, n: int = n, calls: Iterator[int] = calls) -> object:
            if next(calls) == n:
                raise OSError(error, os.strerror(error))
            return real(*args) if real else None

        with monkeypatch.context() as patch:
            if call == "posix_fallocate":
                patch.setattr(OutputFile.__init__, "__defaults__", (failing,))
            elif call == "fsync":
                patch.setattr(os, "fsync", failing)
            else:
                patch.setattr(Path, call, lambda *a, f=failing, **k: f(*a, *k.values()))
            try:
                write(target)
            except expected as caught:
                assert "\n" not in str(caught)
                assert n < 20
            else:
                break
        # A folder that could not be synced after the rename is whole all the same.
        assert not target.exists() or everything(target)
        assert not list(tmp_path.glob(".*"))
    assert n >= 1


def test_interrupts_leave_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from list(units(plans()))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), ModelWriter(tmp_path / "m") as writer:
        writer.add_units(plans(), interrupted())
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_noticed_before_writing(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="free"), ModelWriter(tmp_path / "m") as writer:
        writer.check_room(1 << 60)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("allocate", [True, False])
def test_a_full_disk(tmp_path: Path, allocate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        if not allocate:
            monkeypatch.setattr(OutputFile.__init__, "__defaults__", (None,))
        with pytest.raises(DiskFull, match="disk is full") as caught:
            write(disk / "m")
        assert caught.value.path is not None
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_systems_that_cannot_preallocate(tmp_path: Path) -> None:
    def unsupported(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with OutputFile(tmp_path / "f", 100, unsupported) as file:
        file.write(b"abc")
        file.write(np.arange(3, dtype=np.int64))
        file.sync()
    assert (tmp_path / "f").read_bytes() == b"abc" + np.arange(3, dtype=np.int64).tobytes()
    assert file.nbytes == 27


def test_windows_needs_no_folder_sync(tmp_path: Path) -> None:
    sync_folder(tmp_path)
    sync_folder(tmp_path / "absent", system="nt")


def test_manifests_read_back_as_written(tmp_path: Path) -> None:
    with ModelWriter(tmp_path / "m") as writer:
        writer.add_file("small.safetensors", SMALL)
        writer.add_units(plans(), units(plans()))
        made = dataclasses.replace(manifest(writer), loss={"w": 0.125}, licence="mit")
        writer.publish(made)
    assert read_model(tmp_path / "m").manifest == made
