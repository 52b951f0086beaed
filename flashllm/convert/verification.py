"""Reads a whole flash model and holds every unit and every file to its checksum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xxhash

from flashllm.errors import CorruptModel
from flashllm.flash.files import Scratch, open_file
from flashllm.flash.format import FlashModel, Group, read_model

PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What was read, all of it as written."""

    units: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class _Span:
    """Bytes of a container: a unit with its padding, or (unit is None) header or index."""

    offset: int
    nbytes: int
    group: Group | None = None
    unit: int = 0


def verify(path: Path, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Check the flash model in folder `path`: structure, every unit, every file.

    on_progress is told bytes done and in total. Raises CorruptModel naming what is damaged,
    ModelNotFound, UnsupportedModel or ModelIOError.
    """
    model = read_model(path)  # this holds all files without units to their hashes
    report = on_progress or (lambda done, total: None)
    containers = {group.file for group in model.groups.values()}
    total = sum(entry.nbytes for entry in model.manifest.files.values())
    done = sum(e.nbytes for name, e in model.manifest.files.items() if name not in containers)
    damaged: list[str] = []
    for name in sorted(containers):
        for nbytes, damage in _check_container(model, name):
            done += nbytes
            report(done, total)
            damaged += damage
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise CorruptModel(f"{path}: {damaged[0]}{more} damaged; pull or convert the model again")
    return VerifyReport(sum(group.units for group in model.groups.values()), total)


def _check_container(model: FlashModel, name: str) -> Iterator[tuple[int, list[str]]]:
    """Bytes read and damage found, span by span; each byte is read once, for both hashes."""
    entry = model.manifest.files[name]
    hasher = xxhash.xxh3_64()
    found = False
    file = open_file(model.path / name, "pread", Scratch())
    try:
        for span in _spans(model, name, entry.nbytes):
            data = np.empty(span.nbytes, np.uint8)
            file.read_into(span.offset, data)
            hasher.update(data.data)
            damage = []
            if span.group is not None and not span.group.is_whole(span.unit, data.data):
                damage = [f"{name}: unit {span.unit} of {span.group.name!r}"]
                found = True
            yield span.nbytes, damage
    finally:
        file.close()
    if hasher.hexdigest() != entry.xxh3 and not found:
        yield 0, [f"{name}: its header, index or padding"]


def _spans(model: FlashModel, name: str, size: int) -> Iterator[_Span]:
    """All bytes of a container, in order."""
    groups = [group for group in model.groups.values() if group.file == name]
    end = 0
    for group in sorted(groups, key=lambda group: group.file_offset):
        yield from _pieces(end, group.file_offset)
        for unit in range(group.units):
            begin, end = (group.file_offset + int(group.offsets[i]) for i in (unit, unit + 1))
            yield _Span(begin, end - begin, group, unit)
    yield from _pieces(end, size)


def _pieces(begin: int, end: int) -> Iterator[_Span]:
    for offset in range(begin, end, PIECE):
        yield _Span(offset, min(PIECE, end - offset))
