"""Writes a flash model: into a hidden sibling folder, renamed into place when it is whole."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]
import xxhash
from numpy.typing import NDArray

from flashllm.errors import DiskFull, InvalidInput
from flashllm.flash.container import build_header
from flashllm.flash.format import INDEX, index_checksum, unit_offsets
from flashllm.flash.layout import ALIGNMENT
from flashllm.flash.manifest import FILE_NAME, FileEntry, GroupEntry, Manifest
from flashllm.flash.output import OutputFile, write_error
from flashllm.flash.parts import Part
from flashllm.sizes import format_size

SHARD_BYTES = 4 << 30
SPARE_BYTES = 16 << 20  # manifest, headers, directory blocks
ABANDONED_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """A group to be written: its name and its parts, in unit order."""

    name: str
    parts: tuple[Part, ...]

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each unit, without padding."""
        return np.concatenate([part.lengths() for part in self.parts])

    @property
    def nbytes(self) -> int:
        """Bytes the units take in the file."""
        return int(unit_offsets(self.lengths())[-1])


class ModelWriter:
    """A model being written; used as a context, it leaves a whole model or nothing at all.

    groups and files grow as things are added, and are what the manifest must list.
    """

    def __init__(self, target: Path, *, overwrite: bool = False):
        """Raises InvalidInput if `target` exists, unless it may be overwritten."""
        if target.exists() and not overwrite:
            raise InvalidInput(f"{target}: exists already; choose another place or overwrite it")
        self.target = target
        self.groups: dict[str, GroupEntry] = {}
        self.files: dict[str, FileEntry] = {}
        self._overwrite = overwrite
        mark = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._folder = target.parent / f".{target.name}.{mark}.partial"

    def __enter__(self) -> ModelWriter:
        with _writing(self._folder):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self.target)
            self._folder.mkdir()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def check_room(self, nbytes: int) -> None:
        """Raises DiskFull unless the disk has `nbytes` free, and a little more."""
        with _writing(self._folder):
            free = shutil.disk_usage(self._folder).free
        if free < nbytes + SPARE_BYTES:
            raise DiskFull(
                f"{self.target}: needs {format_size(nbytes + SPARE_BYTES)}, the disk has "
                f"{format_size(free)} free; make room or choose another place",
                self.target,
            )

    def add_file(self, name: str, data: bytes) -> None:
        """Write a whole file into the model. Raises DiskFull, ModelIOError."""
        self.files[name] = _write_file(self._folder / name, data)

    def add_units(
        self,
        plans: Sequence[GroupPlan],
        units: Iterable[NDArray[np.uint8]],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Write the units of `plans`, which `units` yields in order, in files of about a shard.

        Raises DiskFull, ModelIOError.
        """
        source = iter(units)
        for number, shard in enumerate(_shards(plans, shard_bytes), 1):
            self._add_container(f"units-{number:05}.safetensors", shard, source)

    def publish(self, manifest: Manifest) -> Path:
        """Write the manifest and put the model in its place; returns the place.

        Raises DiskFull, ModelIOError; InvalidInput if someone else put a model there meanwhile.
        """
        _write_file(self._folder / FILE_NAME, manifest.to_bytes())
        with _writing(self.target):
            sync_folder(self._folder)
            self._move_into_place()
            sync_folder(self.target.parent)
        return self.target

    def _move_into_place(self) -> None:
        if not self.target.exists():
            self._folder.rename(self.target)
            return
        if not self._overwrite:
            raise InvalidInput(f"{self.target}: appeared while this model was written")
        old = self._folder.with_suffix(".old")
        self.target.rename(old)
        try:
            self._folder.rename(self.target)
        except OSError:
            old.rename(self.target)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _add_container(
        self, name: str, plans: Sequence[GroupPlan], units: Iterator[NDArray[np.uint8]]
    ) -> None:
        """One container: header, units in order, then the index (its checksums are known last)."""
        header = _header(plans)
        with OutputFile(self._folder / name, _container_bytes(plans)) as file:
            file.write(header)
            indices = {plan.name: _write_group(file, plan, units) for plan in plans}
            for index in indices.values():
                for array in index:
                    file.write(array)
            file.sync()
        self.files[name] = FileEntry(file.nbytes, file.hash)
        for plan in plans:
            self.groups[plan.name] = GroupEntry(
                name, plan.parts, index_checksum(*indices[plan.name])
            )


def units_bytes(plans: Sequence[GroupPlan], shard_bytes: int = SHARD_BYTES) -> int:
    """Bytes of all the files that hold the units of `plans`."""
    return sum(_container_bytes(shard) for shard in _shards(plans, shard_bytes))


def _container_bytes(plans: Sequence[GroupPlan]) -> int:
    index = sum(8 * (3 * len(plan.lengths()) + 1) for plan in plans)
    return len(_header(plans)) + sum(plan.nbytes for plan in plans) + index


def _header(plans: Sequence[GroupPlan]) -> bytes:
    """The container's header: first the groups, then each group's index."""
    return build_header(
        [(plan.name, "U8", plan.nbytes) for plan in plans]
        + [
            (f"{plan.name}.{suffix}", dtype, len(plan.lengths()) + (suffix == "offsets"))
            for plan in plans
            for suffix, dtype in INDEX.items()
        ]
    )


def _write_file(path: Path, data: bytes) -> FileEntry:
    with OutputFile(path, len(data)) as file:
        file.write(data)
        file.sync()
    return FileEntry(file.nbytes, file.hash)


Index = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]


def _write_group(file: OutputFile, plan: GroupPlan, units: Iterator[NDArray[np.uint8]]) -> Index:
    """The units of a group, each padded to 4 KiB; returns offsets, lengths and checksums."""
    lengths = plan.lengths()
    checksums = np.empty(len(lengths), np.uint64)
    for i, length in enumerate(lengths.tolist()):
        unit = next(units)
        if len(unit) != length:
            raise ValueError(f"unit {i} of {plan.name} has {len(unit)} bytes, planned {length}")
        file.write(unit)
        file.write(bytes(-length % ALIGNMENT))
        checksums[i] = xxhash.xxh3_64_intdigest(unit.data)
    return unit_offsets(lengths), lengths, checksums


def _shards(plans: Sequence[GroupPlan], shard_bytes: int) -> Iterator[list[GroupPlan]]:
    """Runs of consecutive groups that stay below shard_bytes, at least one group each."""
    shard: list[GroupPlan] = []
    for plan in plans:
        if shard and sum(other.nbytes for other in shard) + plan.nbytes > shard_bytes:
            yield shard
            shard = []
        shard.append(plan)
    if shard:
        yield shard


def sync_folder(folder: Path, system: str = os.name) -> None:
    """Have the disk hold the folder's entries; Windows does so itself and cannot be asked."""
    if system == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove_abandoned(target: Path) -> None:
    """Delete what killed processes left: its owner is gone and nothing in it changed lately."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*-*.partial"):
        owner = folder.name.split(".")[-2].split("-")[0]
        if not owner.isdigit() or psutil.pid_exists(int(owner)):
            continue
        with contextlib.suppress(FileNotFoundError):
            changed = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - changed > ABANDONED_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Translate the system's errors about `path` into ours."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error) from None
