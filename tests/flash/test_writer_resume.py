"""An interrupted writer is gone on with, from any point, to the very same bytes."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import Cancelled, CorruptModel, DiskFull, InvalidInput
from flashllm.flash import output, writer
from flashllm.flash.format import read_model
from flashllm.flash.journal import FileDone, read_journal
from flashllm.flash.manifest import Manifest
from flashllm.flash.partial import partial_folder, remove_partial
from flashllm.flash.parts import MatrixPart
from flashllm.flash.units_file import GroupPlan
from flashllm.flash.writer import ModelWriter

SMALL = b"\x02\0\0\0\0\0\0\0{}"
IDENTITY = {"source": ["a", 1], "options": {"dtype": "q4"}}
SHARD = 900_000  # two groups, of two units each, to a file


@pytest.fixture(autouse=True)
def sync_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)


def plans(groups: int = 5) -> list[GroupPlan]:
    return [GroupPlan(f"g{i}", (MatrixPart.plan("w", "q8", 256, 1500, 0),)) for i in range(groups)]


def unit(group: int, i: int, length: int) -> np.ndarray:
    return np.random.default_rng([group, i]).integers(0, 256, length, np.uint8)


def write(
    target: Path, *, stop: int | None = None, error: type[BaseException] = Cancelled, **options
) -> list[str]:
    """Write the model, raising `error` at unit `stop`; returns the groups done anew."""
    made: list[str] = []
    seen = 0

    def units(number: int, plan: GroupPlan) -> Iterator[np.ndarray]:
        nonlocal seen
        made.append(plan.name)
        for i, length in enumerate(plan.lengths()):
            if seen == stop:
                raise error("stop")
            seen += 1
            yield unit(number, i, int(length))

    with ModelWriter(target, **{"identity": IDENTITY, **options}) as out:
        out.add_file("small.safetensors", SMALL)
        notes = out.begin(plans(), SHARD)
        assert notes == [{"group": i, "loss": i / 3} for i in range(len(notes))]
        for i, plan in list(enumerate(plans()))[len(notes) :]:
            out.add_group(units(i, plan), lambda i=i: {"group": i, "loss": i / 3})
        made_of = Manifest("m", "t", {}, "tile", "keep", out.groups, {}, None, None, out.files)
        out.publish(made_of)
    return made


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted writer makes."""
    write(tmp_path / "whole")
    return content(tmp_path / "whole")


def test_stopped_at_any_unit_and_gone_on_with(tmp_path: Path, whole: dict[str, bytes]) -> None:
    units = sum(len(plan.lengths()) for plan in plans())
    per_group = units // 5
    for stop in range(units):
        target = tmp_path / f"m{stop}"
        with pytest.raises(Cancelled):
            write(target, stop=stop)
        assert not target.exists()
        assert partial_folder(target).exists() == (stop >= per_group)
        again = write(target)
        assert again == [f"g{i}" for i in range(stop // per_group, 5)]
        assert content(target) == whole
    assert not list(tmp_path.glob(".*"))


def test_stopped_again_and_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    units = len(plans()[0].lengths())
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "m", stop=units, error=KeyboardInterrupt)
    assert write(tmp_path / "m") == ["g4"]
    assert content(tmp_path / "m") == whole


@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "rename", "unlink"])
def test_a_process_that_dies_at_any_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], call: str
) -> None:
    """A child exits at its Nth call of a kind, for every N until none is left."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    monkeypatch.setattr(output, "STAGE_BYTES", 1 << 16)
    home: object = os if call in ("pwrite", "fsync") else Path
    real = getattr(home, call)
    for n in range(1000):
        target = tmp_path / f"m{n}"
        with warnings.catch_warnings(action="ignore"):  # of threads, of which none matters here
            child = os.fork()
        if child == 0:
            calls = iter(range(1 << 30))

            def dying(*args: object, calls: Iterator[int] = calls, n: int = n) -> object:
                if next(calls) == n:
                    os._exit(9)
                return real(*args)

            monkeypatch.setattr(home, call, lambda *a, **k: dying(*a, *k.values()))
            try:
                write(target)
            finally:
                os._exit(0)
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        if target.exists():  # it died after the model was in its place
            read_model(target)
        else:
            write(target)
        found = content(target)
        found.pop("journal", None)
        assert found == whole
        if not died:
            break
    assert n < 500
    assert n or call == "pwrite"  # not every file system can write past the page cache


@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_happens_to_what_is_left(
    tmp_path_factory: pytest.TempPathFactory, whole: dict[str, bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("m")
    units = sum(len(plan.lengths()) for plan in plans())
    with pytest.raises(Cancelled):
        write(folder / "m", stop=data.draw(st.integers(units // 5, units - 1)))
    partial = partial_folder(folder / "m")
    name = data.draw(st.sampled_from(sorted(path.name for path in partial.iterdir())))
    damaged = bytearray((partial / name).read_bytes())
    if data.draw(st.booleans()) and damaged:
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[data.draw(st.integers(0, len(damaged))) :]
    _, entries = read_journal(partial / "journal")
    trusted = {entry.file for entry in entries if isinstance(entry, FileDone)}
    (partial / name).write_bytes(damaged)
    write(folder / "m")
    if name not in trusted:  # damage to whole files is for `verify` to find
        assert content(folder / "m") == whole


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(junk=st.binary(max_size=300))
def test_any_journal(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "journal").write_bytes(junk)
    identity, entries = read_journal(tmp_path / "journal")
    assert identity is None
    assert entries == []


def test_another_identity_starts_over(tmp_path: Path, whole: dict[str, bytes]) -> None:
    target, said = tmp_path / "m", []
    with pytest.raises(Cancelled):
        write(target, stop=7, identity={"source": "another"})
    made = write(target, say=said.append)
    assert made == [f"g{i}" for i in range(5)]
    assert len(said) == 1
    assert said[0].startswith("starting over: an earlier conversion was of another source")
    assert content(target) == whole


def test_told_to_start_over(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        write(tmp_path / "m", stop=7)
    assert len(write(tmp_path / "m", restart=True)) == 5


@pytest.mark.parametrize("error", [CorruptModel, InvalidInput])
def test_errors_that_would_come_again_leave_nothing(
    tmp_path: Path, error: type[BaseException]
) -> None:
    with pytest.raises(error):
        write(tmp_path / "m", stop=7, error=error)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch, pytest.raises(DiskFull):
        patch.setattr(output.OutputFile, "_write_cached", full)
        patch.setattr(output, "_open_direct", lambda path: -1)
        with ModelWriter(tmp_path / "m", identity=IDENTITY) as out:
            patch.undo()
            for _ in out.begin(plans(), SHARD):
                pass
            for i, plan in enumerate(plans()):
                units = (unit(i, j, int(n)) for j, n in enumerate(plan.lengths()))
                out.add_group(units, lambda i=i: {"group": i, "loss": i / 3})
                if i == 2:
                    patch.setattr(os, "fsync", full)
    assert out.kept
    assert len(write(tmp_path / "m")) == 2
    assert content(tmp_path / "m") == whole


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path) -> None:
    write(tmp_path / "m")
    before = content(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / ".m.old")
    with pytest.raises(InvalidInput, match="exists"):
        write(tmp_path / "m")
    assert content(tmp_path / "m") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_what_is_left_can_be_removed(tmp_path: Path) -> None:
    assert not remove_partial(tmp_path / "m")
    with pytest.raises(Cancelled):
        write(tmp_path / "m", stop=7)
    assert remove_partial(tmp_path / "m")
    assert not list(tmp_path.iterdir())
    with ModelWriter(tmp_path / "m"), pytest.raises(InvalidInput, match="writing it now"):
        remove_partial(tmp_path / "m")
