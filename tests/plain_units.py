"""Models of nothing but groups of random units of equal size, for tests of reading them."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash

from flashllm.errors import ModelIOError
from flashllm.flash.format import FlashModel, Group, unit_offsets
from flashllm.flash.manifest import FileEntry, Manifest
from flashllm.flash.reader import UnitReader

FILE = "units-00001.safetensors"
LENGTH = 4000
"""Bytes of a unit, short of a page, so that there is padding."""


def write(folder: Path, layers: int, units: int, length: int = LENGTH, last: int = 100) -> Path:
    """A file of `layers` groups called l0, l1 ...; each last unit is of `last` bytes."""
    folder.mkdir()
    rng = np.random.default_rng(7)
    lengths = np.full(units, length, np.int64)
    lengths[-1] = last
    size = 4096 + layers * int(unit_offsets(lengths)[-1])
    (folder / FILE).write_bytes(rng.bytes(size))  # padding is random too
    return folder


def read(
    folder: Path, layers: int, units: int, length: int = LENGTH, last: int = 100
) -> FlashModel:
    """The model that `write` with the same arguments has written."""
    data = (folder / FILE).read_bytes()
    lengths = np.full(units, length, np.int64)
    lengths[-1] = last
    offsets = unit_offsets(lengths)
    groups = {}
    for layer in range(layers):
        begin = 4096 + layer * int(offsets[-1])
        sums = [
            xxhash.xxh3_64_intdigest(data[begin + at : begin + at + size])
            for at, size in zip(offsets[:-1].tolist(), lengths.tolist(), strict=True)
        ]
        name = f"l{layer}"
        groups[name] = Group(name, FILE, (), offsets, lengths, np.array(sums, np.uint64), begin)
    files = {FILE: FileEntry(len(data), "")}
    manifest = Manifest("plain", "tests", {}, "row", "f16", {}, {}, None, None, files)
    return FlashModel(folder, manifest, groups)


def unit_bytes(model: FlashModel, group: Group, unit: int) -> bytes:
    """A unit as the file has it, without padding."""
    with (model.path / group.file).open("rb") as file:
        file.seek(group.file_offset + int(group.offsets[unit]))
        return file.read(int(group.lengths[unit]))


def at_address(model: FlashModel, group: Group, unit: int, address: int) -> bool:
    """Whether the memory there holds the unit."""
    expected = unit_bytes(model, group, unit)
    return address != 0 and ctypes.string_at(address, len(expected)) == expected


class UnreliableReader(UnitReader):
    """Scattered reads that touch a unit in `broken` (group, unit) fail, as those of a bad disk do.

    asked: the units of each read, in no certain order. While `gate` is cleared, reads wait.
    """

    def __init__(self, model: FlashModel, io: str = "pread"):
        super().__init__(model, io)
        self.broken: set[tuple[str, int]] = set()
        self.asked: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def read_scattered(self, group: Group, units: Sequence[int], out: Sequence[memoryview]) -> None:
        self.asked.append(list(units))
        assert self.gate.wait(30)
        if any((group.name, unit) in self.broken for unit in units):
            raise ModelIOError(f"{group.file}: cannot read: injected", self.model.path, units[0])
        super().read_scattered(group, units, out)
