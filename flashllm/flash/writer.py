"""Writes a flash model: into a hidden sibling folder, renamed into place when it is whole."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, DiskFull, InvalidInput, UnsupportedModel
from flashllm.flash.journal import Entry, FileDone, GroupDone, Journal
from flashllm.flash.manifest import FILE_NAME, FileEntry, GroupEntry, Manifest
from flashllm.flash.output import OutputFile, write_error
from flashllm.flash.partial import PartialFolder, owned
from flashllm.flash.units_file import (
    SHARD_BYTES,
    GroupPlan,
    Notes,
    Shard,
    UnitsFile,
    group_entry,
    read_group,
    split_in_shards,
)
from flashllm.sizes import format_size

SPARE_BYTES = 16 << 20  # manifest, headers, directory blocks
SYNC_BYTES = 64 << 20
"""A group is noted as done when so much is on the disk since the last: syncing costs milliseconds,
and this is what a killed conversion does again at most, its last group aside."""

_USELESS = (CorruptModel, UnsupportedModel, InvalidInput)
"""After these, going on would only fail again."""


class ModelWriter:
    """A model being written; used as a context, it leaves a whole model or none at all.

    Interrupted or out of disk, it keeps what is done, hidden, for a writer of the same identity;
    `kept` says so afterwards. groups and files grow as things are added, and are what the manifest
    must list.
    """

    def __init__(
        self,
        target: Path,
        *,
        overwrite: bool = False,
        identity: Mapping[str, Any] | None = None,
        restart: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ):
        """identity: all that decides the model's bytes, as JSON; None: never keep, nor go on.

        restart drops what was kept; say is told when that happens for another reason.
        """
        self.target = target
        self.groups: dict[str, GroupEntry] = {}
        self.files: dict[str, FileEntry] = {}
        self.kept = False
        self._overwrite = overwrite
        self._identity = identity
        self._restart = restart
        self._say = say
        self._stack = contextlib.ExitStack()
        self._published = False
        self._journal: Journal | None = None
        self._entries: list[Entry] = []
        self._shards: list[Shard] = []
        self._file: UnitsFile | None = None

    def __enter__(self) -> ModelWriter:
        """Raises InvalidInput if the target exists and may not be overwritten, or is in use."""
        self._check_absent()
        with contextlib.ExitStack() as stack:
            stack.enter_context(owned(self.target))
            self._check_absent()
            restart = self._restart or self._identity is None
            self._folder = PartialFolder(
                self.target, self._identity or {}, restart=restart, say=self._say
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        with self._stack:
            for open_file in (self._file, self._journal):
                if open_file is not None:
                    open_file.close()
            if self._published:
                return
            useful = error is not None and not isinstance(error, _USELESS)
            self.kept = useful and self._identity is not None and bool(self._entries)
            if not self.kept:
                self._folder.remove()

    def check_room(self, nbytes: int) -> None:
        """Raises DiskFull unless the disk has `nbytes` for the model, and a little more."""
        needed = nbytes + SPARE_BYTES - self._folder.nbytes
        try:
            free = shutil.disk_usage(self._folder.path).free
        except OSError as error:
            raise write_error(self.target, error) from None
        if free < needed:
            raise DiskFull(
                f"{self.target}: needs {format_size(needed)}, the disk has {format_size(free)} "
                "free; make room or choose another place",
                self.target,
            )

    def add_file(self, name: str, data: bytes) -> None:
        """Write a whole file into the model. Raises DiskFull, ModelIOError."""
        self.files[name] = self._write_file(name, data)

    def begin(self, plans: Sequence[GroupPlan], shard_bytes: int = SHARD_BYTES) -> list[Notes]:
        """Say what groups there will be; returns the notes of the first ones, already written.

        What an earlier writer left in an unfinished file is read and held to its checksums.
        Raises DiskFull, ModelIOError.
        """
        self._shards = split_in_shards(plans, shard_bytes)
        groups = {e.group: e for e in self._folder.entries if isinstance(e, GroupDone)}
        whole = {e.file: e for e in self._folder.entries if isinstance(e, FileDone)}
        for shard in self._shards:
            done = list(_leading(shard, groups))
            if len(done) == len(shard.plans) and self._is_whole(whole.get(shard.name)):
                self._entries += [*done, whole[shard.name]]
                self._register(shard, done, whole[shard.name])
                continue
            if done:
                self._file = UnitsFile(self._folder.path, shard, done)
                self._entries += self._file.done
            break
        self._journal = Journal(self._folder.journal, self._identity or {}, self._entries)
        notes = [dict(e.notes) for e in self._entries if isinstance(e, GroupDone)]
        if self._file is not None and self._file.is_full:
            self._finish(self._file)
        return notes

    def add_group(
        self, units: Iterator[NDArray[np.uint8]], notes: Callable[[], Notes] = dict
    ) -> None:
        """Write the units of the next group, which `units` yields; then note notes() with it.

        Raises DiskFull, ModelIOError.
        """
        if self._file is None:
            whole = sum(shard.name in self.files for shard in self._shards)
            self._file = UnitsFile(self._folder.path, self._shards[whole])
        file = self._file
        file.add_group(units, notes)
        if file.is_full or file.unsynced >= SYNC_BYTES:
            file.sync()
            noted = sum(isinstance(entry, GroupDone) for entry in self._entries)
            before = sum(len(s.plans) for s in self._shards[: self._shards.index(file.shard)])
            self._note(file.done[noted - before :])
        if file.is_full:
            self._finish(file)

    def written_units(self, name: str) -> list[NDArray[np.uint8]]:
        """The units of a group that an earlier writer has written. Raises CorruptModel,
        ModelIOError; KeyError if none has.
        """
        groups = {e.group: e for e in self._entries if isinstance(e, GroupDone)}
        shard = next(s for s in self._shards if any(plan.name == name for plan in s.plans))
        return read_group(self._folder.path, shard, name, groups)

    def add_units(
        self,
        plans: Sequence[GroupPlan],
        units: Iterator[NDArray[np.uint8]],
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        """Write the units of `plans`, which `units` yields in order, from the first to the last."""
        for _ in plans[len(self.begin(plans, shard_bytes)) :]:
            self.add_group(units)

    def publish(self, manifest: Manifest) -> Path:
        """Write the manifest and put the model in its place; returns the place.

        Raises DiskFull, ModelIOError; InvalidInput if someone else put a model there meanwhile.
        """
        self._write_file(FILE_NAME, manifest.to_bytes())
        if self._journal:
            self._journal.close()
        self._folder.publish(overwrite=self._overwrite)
        self._published = True
        return self.target

    def _check_absent(self) -> None:
        if self.target.exists() and not self._overwrite:
            raise InvalidInput(
                f"{self.target}: exists already; choose another place or overwrite it"
            )

    def _write_file(self, name: str, data: bytes) -> FileEntry:
        path = self._folder.path / name
        path.unlink(missing_ok=True)  # an interrupted writer's
        with OutputFile(path, len(data)) as file:
            file.write(data)
            file.sync()
        return FileEntry(file.nbytes, file.hash)

    def _finish(self, file: UnitsFile) -> None:
        """Write the indices of a file whose groups are all there."""
        entry = file.finish()
        self._file = None
        done = FileDone(file.shard.name, entry.nbytes, entry.xxh3)
        self._note([done])
        self._register(file.shard, file.done, done)

    def _note(self, entries: Sequence[Entry]) -> None:
        """Have the journal say that these are on the disk."""
        if self._journal is not None:
            self._journal.append(entries)
        self._entries += entries

    def _register(self, shard: Shard, done: Sequence[GroupDone], file: FileDone) -> None:
        """Count a whole file in."""
        self.files[shard.name] = FileEntry(file.nbytes, file.xxh3)
        for plan, group in zip(shard.plans, done, strict=True):
            self.groups[plan.name] = group_entry(shard, plan, group)

    def _is_whole(self, done: FileDone | None) -> bool:
        if done is None:
            return False
        path = self._folder.path / done.file
        return path.is_file() and path.stat().st_size == done.nbytes


def _leading(shard: Shard, groups: Mapping[str, GroupDone]) -> Iterator[GroupDone]:
    """The first groups of a shard that are done."""
    for plan in shard.plans:
        done = groups.get(plan.name)
        if done is None or len(done.checksums) != len(plan.lengths()):
            return
        yield done
