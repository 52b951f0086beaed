"""A flash model on disk: the manifest, the groups of units and their index, all checked.

Nothing here is trusted: the manifest, the containers' headers and the unit index must agree with
each other and with the true sizes of the files before anything is read for them.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.numpy
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError

from flashllm.documents import MAX_JSON
from flashllm.errors import CorruptModel, ModelIOError, ModelNotFound
from flashllm.flash.bitmaps import Check, is_sound
from flashllm.flash.layout import ALIGNMENT
from flashllm.flash.manifest import FILE_NAME, SMALL_FILE, GroupEntry, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart, Part, Runs
from flashllm.safetensors_header import TensorPlace, read_header

__all__ = [
    "FFNPart",
    "FlashModel",
    "Group",
    "Manifest",
    "MatrixPart",
    "Part",
    "read_model",
    "read_small",
    "unit_offsets",
]

MAX_SMALL = 1 << 30
INDEX = {"offsets": "I64", "lengths": "I64", "xxh3": "U64"}
"""The tensors that accompany a group, called group.offsets and so on, in file order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The units of a group: unit i is `lengths[i]` bytes from file_offset + offsets[i].

    offsets int64 [n + 1] and lengths int64 [n] in bytes, checksums uint64 [n] (xxh3_64).
    """

    name: str
    file: str
    parts: tuple[Part, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    checksums: NDArray[np.uint64]
    file_offset: int

    @property
    def units(self) -> int:
        """How many units the group has."""
        return len(self.lengths)

    def is_whole(self, unit: int, data: memoryview, check: Check = is_sound) -> bool:
        """Whether `data`, as long as the unit or longer, begins with it as it was written: by its
        checksum, and if it is of codec `bitmap` by `check`.
        """
        unit_data = data[: self.lengths.item(unit)]
        if xxhash.xxh3_64_intdigest(unit_data) != self.checksums.item(unit):
            return False
        runs = self._bitmaps[unit] if self._bitmaps else ()
        return not runs or check(np.frombuffer(unit_data, np.uint8), runs)

    @functools.cached_property
    def _bitmaps(self) -> list[tuple[Runs, ...]]:
        """What each unit of codec `bitmap` holds, () for others; nothing if there are none."""
        if all(part.codec != "bitmap" for part in self.parts):
            return []
        found: list[tuple[Runs, ...]] = []
        for part in self.parts:
            if part.codec != "bitmap":
                found += [()] * part.units
                continue
            found += [part.runs(0)] * (part.units - 1) + [part.runs(part.units - 1)]
        return found

    def part(self, role: str) -> Part:
        """The part called `role`. Raises CorruptModel."""
        for part in self.parts:
            if part.role == role:
                return part
        raise CorruptModel(f"group {self.name!r} has no part {role!r}; convert the model again")


@dataclasses.dataclass(frozen=True, eq=False)
class FlashModel:
    """An opened flash model: its folder, its manifest, its groups by name."""

    path: Path
    manifest: Manifest
    groups: dict[str, Group]

    def group(self, name: str) -> Group:
        """The group called `name`. Raises CorruptModel."""
        if name not in self.groups:
            raise CorruptModel(f"{self.path}: has no group {name!r}; convert the model again")
        return self.groups[name]

    @property
    def offsets(self) -> dict[str, list[int]]:
        """Where each unit of each group begins and the last one ends, in the group's bytes."""
        return {name: group.offsets.tolist() for name, group in self.groups.items()}

    @property
    def parts(self) -> dict[str, tuple[Part, ...]]:
        """What the units of each group hold."""
        return {name: group.parts for name, group in self.groups.items()}

    @property
    def unit_bytes(self) -> int:
        """Bytes of all units, without padding."""
        return sum(int(group.lengths.sum()) for group in self.groups.values())


def read_model(path: Path) -> FlashModel:
    """Open the model in folder `path`: manifest, headers and index; no weights are read.

    Files without units (tokenizer, norms) are checked against their hashes. Raises ModelNotFound,
    CorruptModel, UnsupportedModel or ModelIOError.
    """
    manifest = read_manifest(path)
    unit_files = {group.file for group in manifest.groups.values()}
    groups: dict[str, Group] = {}
    for name, entry in manifest.files.items():
        _check_size(path / name, entry.nbytes)
        if name in unit_files:
            groups |= _read_groups(path / name, manifest)
        else:
            _check_hash(path / name, entry.xxh3)
    return FlashModel(path, manifest, {name: groups[name] for name in manifest.groups})


def read_manifest(path: Path) -> Manifest:
    """The manifest of the model in folder `path`, not yet held against the other files."""
    if not path.exists():
        raise ModelNotFound(f"{path}: no such model; `flashllm ls` lists those on this computer")
    file = path / FILE_NAME
    if not file.is_file():
        raise ModelNotFound(f"{path}: not a flash model (it has no {FILE_NAME})")
    if file.stat().st_size > MAX_JSON:
        raise CorruptModel(f"{file}: larger than {MAX_JSON} bytes")
    return Manifest.from_bytes(_read(file), str(file))


def read_small(path: Path) -> dict[str, NDArray[np.float32]]:
    """The vectors of the model in folder `path` (norms), by role: float32.

    Raises CorruptModel if the file fails its hash or holds anything else.
    """
    file = path / SMALL_FILE
    entry = read_manifest(path).files[SMALL_FILE]
    _check_size(file, min(entry.nbytes, MAX_SMALL))
    _check_hash(file, entry.xxh3)
    try:
        tensors = safetensors.numpy.load(_read(file))
    except SafetensorError as error:
        raise CorruptModel(f"{file}: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32 or not np.isfinite(tensor).all():
            raise CorruptModel(f"{file}: {name!r} is not finite float32")
    return tensors


def file_hash(path: Path) -> str:
    """xxh3_64 of a file, read piece by piece: 16 hex digits. Raises ModelIOError."""
    hasher = xxhash.xxh3_64()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                hasher.update(piece)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
    return hasher.hexdigest()


def unit_offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where units of `lengths` bytes begin when each fills whole 4 KiB blocks: int64 [n + 1]."""
    blocks = -(-lengths // ALIGNMENT)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(blocks * ALIGNMENT)])


def index_checksum(*arrays: NDArray[Any]) -> str:
    """xxh3_64 of a group's offsets, lengths and checksums, one after another: 16 hex digits."""
    hasher = xxhash.xxh3_64()
    for array in arrays:
        hasher.update(array.tobytes())
    return hasher.hexdigest()


def _read_groups(path: Path, manifest: Manifest) -> dict[str, Group]:
    """The groups in one container."""
    wanted = {name: g for name, g in manifest.groups.items() if g.file == path.name}
    try:
        with path.open("rb") as file:
            places = read_header(file, path, path.stat().st_size, MAX_JSON)
            if len(places) != len(wanted) * (1 + len(INDEX)):
                raise CorruptModel(f"{path}: holds other groups than the manifest says")
            return {name: _read_group(file, path, places, name, wanted[name]) for name in wanted}
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None


def _read_group(
    file: BinaryIO, path: Path, places: dict[str, TensorPlace], name: str, entry: GroupEntry
) -> Group:
    where = f"{path}: group {name!r}"
    data = places.get(name)
    if data is None or data.dtype != "U8" or data.offset % ALIGNMENT:
        raise CorruptModel(f"{where}: is missing or not aligned to {ALIGNMENT} bytes")
    count = sum(part.units for part in entry.parts)
    if count * ALIGNMENT > data.nbytes:
        raise CorruptModel(f"{where}: {data.nbytes} bytes cannot hold {count} units")
    offsets, lengths, checksums = (
        _read_index(file, places, f"{name}.{suffix}", dtype, count + (suffix == "offsets"), where)
        for suffix, dtype in INDEX.items()
    )
    least = np.concatenate([part.lengths(density=0.0) for part in entry.parts])
    most = np.concatenate([part.lengths() for part in entry.parts])
    if (lengths < least).any() or (lengths > most).any():
        raise CorruptModel(f"{where}: its units are not as long as its parts say")
    if not np.array_equal(offsets, unit_offsets(lengths)) or offsets[-1] != data.nbytes:
        raise CorruptModel(f"{where}: its units are not where its parts say")
    if index_checksum(offsets, lengths, checksums) != entry.index_xxh3:
        raise CorruptModel(f"{where}: its index is not the one the manifest was written for")
    return Group(name, path.name, entry.parts, offsets, lengths, checksums, data.offset)


def _read_index(
    file: BinaryIO, places: dict[str, TensorPlace], name: str, dtype: str, count: int, where: str
) -> NDArray[Any]:
    place = places.get(name)
    if place is None or (place.dtype, place.shape) != (dtype, (count,)):
        raise CorruptModel(f"{where}: index tensor {name!r} is missing or of the wrong shape")
    file.seek(place.offset)
    data = file.read(place.nbytes)
    if len(data) != place.nbytes:
        raise CorruptModel(f"{where}: the file shrank while its index was read")
    return np.frombuffer(data, "<i8" if dtype == "I64" else "<u8")


def _check_size(path: Path, nbytes: int) -> None:
    if not path.is_file():
        raise CorruptModel(f"{path}: is missing; pull or convert the model again")
    size = path.stat().st_size
    if size != nbytes:
        raise CorruptModel(
            f"{path}: {size} bytes, the manifest says {nbytes}; pull or convert again"
        )


def _check_hash(path: Path, xxh3: str) -> None:
    if file_hash(path) != xxh3:
        raise CorruptModel(f"{path}: fails its checksum; pull or convert the model again")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
