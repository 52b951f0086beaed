"""A file of units being written: header, the groups' units in order, then their indices."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, ModelIOError
from flashllm.flash.container import build_header
from flashllm.flash.files import Scratch, open_file
from flashllm.flash.format import INDEX, file_hash, index_checksum, unit_offsets
from flashllm.flash.journal import GroupDone
from flashllm.flash.layout import ALIGNMENT, round_up
from flashllm.flash.manifest import FileEntry, GroupEntry
from flashllm.flash.output import OutputFile
from flashllm.flash.parts import Part

SHARD_BYTES = 4 << 30

Notes = dict[str, Any]
"""What whoever writes a group wants to find again if the writing is interrupted: JSON."""


@dataclasses.dataclass(frozen=True)
class GroupPlan:
    """A group to be written: its name and its parts, in unit order.

    densities: of parts of codec `bitmap`, by role, the share of their weights that is not zero, as
    far as it is known: their units are only as long as these leave them.
    """

    name: str
    parts: tuple[Part, ...]
    densities: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def varies(self) -> bool:
        """Whether the lengths of units are known only when they are made."""
        return any(part.codec == "bitmap" for part in self.parts)

    def lengths(self) -> NDArray[np.int64]:
        """Bytes of each unit, without padding; about, if the group `varies`."""
        return np.concatenate(
            [part.lengths(self.densities.get(part.role, 1.0)) for part in self.parts]
        )

    def most(self) -> NDArray[np.int64]:
        """The most bytes of each unit."""
        return np.concatenate([part.lengths() for part in self.parts])

    @property
    def nbytes(self) -> int:
        """Bytes the units take in the file; about, if the group `varies`."""
        return int(unit_offsets(self.lengths())[-1])


@dataclasses.dataclass(frozen=True)
class Shard:
    """The groups that one file holds."""

    name: str
    plans: tuple[GroupPlan, ...]

    @property
    def varies(self) -> bool:
        """Whether one of the groups does."""
        return any(plan.varies for plan in self.plans)

    @property
    def nbytes(self) -> int:
        """Bytes of the file; about, if it `varies`."""
        index = sum(8 * (3 * len(plan.lengths()) + 1) for plan in self.plans)
        return len(self.header()) + sum(plan.nbytes for plan in self.plans) + index

    def header(self) -> bytes:
        """The file's header: first the groups, then each group's index.

        Where lengths are not known yet it says the most, and is as long as one that says less.
        """
        return self._header([int(unit_offsets(plan.most())[-1]) for plan in self.plans])

    def true_header(self, done: Sequence[GroupDone]) -> bytes:
        """The header of a file whose groups are all done; as long as `header`."""
        sizes = [
            int(unit_offsets(_lengths(plan, group))[-1])
            for plan, group in zip(self.plans, done, strict=True)
        ]
        return self._header(sizes, len(self.header()))

    def _header(self, sizes: Sequence[int], length: int = 0) -> bytes:
        return build_header(
            [(plan.name, "U8", size) for plan, size in zip(self.plans, sizes, strict=True)]
            + [
                (f"{plan.name}.{suffix}", dtype, len(plan.lengths()) + (suffix == "offsets"))
                for plan in self.plans
                for suffix, dtype in INDEX.items()
            ],
            length,
        )


def split_in_shards(plans: Sequence[GroupPlan], shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Runs of consecutive groups that stay below shard_bytes, at least one group each."""
    runs: list[list[GroupPlan]] = []
    taken = 0
    for plan in plans:
        if not runs or taken + plan.nbytes > shard_bytes:
            runs.append([])
            taken = 0
        runs[-1].append(plan)
        taken += plan.nbytes
    return [Shard(f"units-{i:05}.safetensors", tuple(run)) for i, run in enumerate(runs, 1)]


def units_bytes(plans: Sequence[GroupPlan], shard_bytes: int = SHARD_BYTES) -> int:
    """Bytes of all the files that hold the units of `plans`."""
    return sum(shard.nbytes for shard in split_in_shards(plans, shard_bytes))


class UnitsFile:
    """One shard's file: its groups are added in order, then it is finished.

    `unsynced` counts the bytes written since the last sync.
    """

    def __init__(self, folder: Path, shard: Shard, done: Sequence[GroupDone] = ()):
        """Begin the file, or go on after the groups that are `done`: those that are still whole.

        Raises DiskFull, ModelIOError.
        """
        self.shard = shard
        self.done = list(done)
        self.unsynced = 0
        self._path = path = folder / shard.name
        hasher, nbytes = xxhash.xxh3_64(), 0
        if self.done:
            hasher, nbytes = self._check(path)
        if not self.done:
            path.unlink(missing_ok=True)
            self._file = OutputFile(path, shard.nbytes)
            try:
                self._file.write(shard.header())
            except ModelIOError:
                self._file.close()
                raise
        else:
            self._file = OutputFile(path, shard.nbytes, nbytes=nbytes, hasher=hasher)

    @property
    def is_full(self) -> bool:
        """Whether all groups are there."""
        return len(self.done) == len(self.shard.plans)

    def add_group(self, units: Iterator[NDArray[np.uint8]], notes: Callable[[], Notes]) -> None:
        """Write the units of the next group, each padded to 4 KiB; it is `done` with notes()."""
        plan = self.shard.plans[len(self.done)]
        planned = plan.most().tolist()
        lengths = np.empty(len(planned), np.int64)
        checksums = np.empty(len(planned), np.uint64)
        for i, length in enumerate(planned):
            unit = next(units)
            if len(unit) > length or (len(unit) < length and not plan.varies):
                raise ValueError(f"unit {i} of {plan.name} has {len(unit)} bytes, planned {length}")
            self._file.write(unit)
            self._file.write(bytes(-len(unit) % ALIGNMENT))
            lengths[i] = len(unit)
            checksums[i] = xxhash.xxh3_64_intdigest(unit.data)
        self.unsynced += int(unit_offsets(lengths)[-1])
        self.done.append(GroupDone(plan.name, checksums, notes(), lengths if plan.varies else None))

    def sync(self) -> None:
        """Have the disk hold all groups added. Raises DiskFull, ModelIOError."""
        self._file.sync()
        self.unsynced = 0

    def finish(self) -> FileEntry:
        """Write the indices, after all groups. Raises DiskFull, ModelIOError."""
        for plan, done in zip(self.shard.plans, self.done, strict=True):
            for array in _index(plan, done):
                self._file.write(array)
        self._file.sync()
        if self.shard.varies:
            self._file.replace_start(self.shard.true_header(self.done))
        self._file.close()
        return FileEntry(
            self._file.nbytes, file_hash(self._path) if self.shard.varies else self._file.hash
        )

    def close(self) -> None:
        """Close the file, finished or not."""
        self._file.close()

    def _check(self, path: Path) -> tuple[xxhash.xxh3_64, int]:
        """Read what should be there; `done` becomes the groups that are, to the last bit.

        Returns the hash and the length of it.
        """
        header = self.shard.header()
        hasher, nbytes = xxhash.xxh3_64(header), len(header)
        expected, self.done = self.done, []
        try:
            file = open_file(path, "direct", Scratch())
        except ModelIOError:
            return hasher, nbytes
        try:
            begin = np.empty(len(header), np.uint8)
            file.read_into(0, begin)
            if begin.tobytes() != header:
                return hasher, nbytes
            for plan, done in zip(self.shard.plans, expected, strict=False):
                after = hasher.copy()
                offset = nbytes
                for length, checksum in zip(_lengths(plan, done), done.checksums, strict=True):
                    unit = np.zeros(round_up(int(length), ALIGNMENT), np.uint8)
                    file.read_into(offset, unit)
                    if xxhash.xxh3_64_intdigest(unit[:length].data) != int(checksum):
                        return hasher, nbytes
                    after.update(unit.data)
                    offset += len(unit)
                hasher, nbytes = after, offset
                self.done.append(done)
        except ModelIOError:
            pass  # it ends too early: the groups found so far are good
        finally:
            file.close()
        return hasher, nbytes


def read_group(
    folder: Path, shard: Shard, name: str, groups: Mapping[str, GroupDone]
) -> list[NDArray[np.uint8]]:
    """The units of a group of an unfinished file, all groups before it done as well.

    Raises CorruptModel if one fails its checksum, ModelIOError.
    """
    offset = len(shard.header())
    for plan in shard.plans:
        done = groups[plan.name]
        lengths = _lengths(plan, done)
        offsets = unit_offsets(lengths)
        if plan.name != name:
            offset += int(offsets[-1])
            continue
        units = [np.empty(length, np.uint8) for length in lengths.tolist()]
        with contextlib.closing(open_file(folder / shard.name, "direct", Scratch())) as file:
            for unit, begin, checksum in zip(units, offsets, done.checksums, strict=False):
                file.read_into(offset + int(begin), unit)
                if xxhash.xxh3_64_intdigest(unit.data) != int(checksum):
                    raise CorruptModel(f"{folder}: a unit of {name} is damaged; use --restart")
        return units
    raise KeyError(name)


def group_entry(shard: Shard, plan: GroupPlan, done: GroupDone) -> GroupEntry:
    """What the manifest says of a group."""
    return GroupEntry(shard.name, plan.parts, index_checksum(*_index(plan, done)))


Index = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]


def _lengths(plan: GroupPlan, done: GroupDone) -> NDArray[np.int64]:
    """Bytes of each unit of a group that is done."""
    return plan.lengths() if done.lengths is None else done.lengths


def _index(plan: GroupPlan, done: GroupDone) -> Index:
    lengths = _lengths(plan, done)
    return unit_offsets(lengths), lengths, done.checksums
