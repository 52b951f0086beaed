"""manifest.json: what a flash model is, which files make it, which units each group has."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import PurePosixPath
from typing import Any

import xxhash

from flashllm.documents import field, parse_object
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.layout import GRAINS
from flashllm.flash.parts import FFNPart, Part, part_from_json
from flashllm.flash.sparsity import check_sparsity

FILE_NAME = "manifest.json"
SMALL_FILE = "small.safetensors"
FORMAT, VERSION = "flashllm-model", 2
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_HASH = re.compile(r"[0-9a-f]{16}")


@dataclasses.dataclass(frozen=True)
class FileEntry:
    """A file of the model: its length and the xxh3_64 of its bytes, 16 hex digits."""

    nbytes: int
    xxh3: str


@dataclasses.dataclass(frozen=True)
class GroupEntry:
    """A group of units: its file, its parts in unit order, the xxh3_64 of its unit index."""

    file: str
    parts: tuple[Part, ...]
    index_xxh3: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The manifest of a flash model; config is the family's config, not interpreted here.

    dtype is what the conversion was asked for; loss maps roles to the relative RMS error of their
    weights, None if nothing was lost. sparsity is what sparsity.py says, None for ordinary models.
    """

    name: str
    created_by: str
    config: dict[str, Any]
    codec: str
    dtype: str
    groups: dict[str, GroupEntry]
    source: dict[str, Any]
    licence: str | None
    loss: dict[str, float] | None
    files: dict[str, FileEntry]
    sparsity: dict[str, Any] | None = None

    def to_bytes(self) -> bytes:
        """The file's content: JSON, its own checksum included."""
        data: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "created_by": self.created_by,
            "codec": self.codec,
            "dtype": self.dtype,
            "licence": self.licence,
            "source": self.source,
            "config": self.config,
            "loss": self.loss,
            "files": {
                name: {"bytes": entry.nbytes, "xxh3": entry.xxh3}
                for name, entry in self.files.items()
            },
            "groups": {
                name: {
                    "file": group.file,
                    "index_xxh3": group.index_xxh3,
                    "parts": [part.to_json() for part in group.parts],
                }
                for name, group in self.groups.items()
            },
        }
        if self.sparsity is not None:
            data["sparsity"] = self.sparsity
        data["checksum"] = _checksum(data)
        return (json.dumps(data, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> Manifest:
        """The manifest in `content`; `where` begins every message.

        Raises CorruptModel, or UnsupportedModel for another version.
        """
        data = parse_object(content, where)
        if data.get("format") != FORMAT:
            raise CorruptModel(f"{where}: not a {FORMAT} manifest")
        version = field(data, "version", int, where)
        if version != VERSION:
            raise UnsupportedModel(
                f"{where}: format version {version}; this flashllm reads {VERSION}: "
                "pull or convert the model again"
            )
        known = {"format", "version", "checksum"} | {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CorruptModel(
                f"{where}: unknown keys {unknown}; was it written by a newer flashllm?"
            )
        if data.pop("checksum", None) != _checksum(data):
            raise CorruptModel(f"{where}: fails its checksum; pull or convert the model again")
        groups = field(data, "groups", dict, where)
        files = field(data, "files", dict, where)
        manifest = cls(
            name=field(data, "name", str, where),
            created_by=field(data, "created_by", str, where),
            config=field(data, "config", dict, where),
            codec=field(data, "codec", str, where),
            dtype=field(data, "dtype", str, where),
            groups={name: _group(name, groups, where) for name in groups},
            source=field(data, "source", dict, where),
            licence=field(data, "licence", (str, type(None)), where),
            loss=field(data, "loss", (dict, type(None)), where),
            files={name: _file(name, files, where) for name in files},
            sparsity=field(data, "sparsity", (dict, type(None)), where),
        )
        manifest._check(where)
        return manifest

    def _check(self, where: str) -> None:
        for text in (self.name, self.created_by, self.licence or ""):
            if not text.isprintable():
                raise CorruptModel(f"{where}: a name of the model is not printable: {text[:80]!r}")
        if not all(isinstance(value, (int, float)) for value in (self.loss or {}).values()):
            raise CorruptModel(f"{where}: a loss is not a number")
        if self.codec not in GRAINS:
            raise CorruptModel(f"{where}: unknown codec {self.codec!r}")
        if SMALL_FILE not in self.files:
            raise CorruptModel(f"{where}: lists no {SMALL_FILE}")
        for name, group in self.groups.items():
            if group.file not in self.files:
                raise CorruptModel(
                    f"{where}: group {name!r} is in {group.file!r}, which is not listed"
                )
        if self.sparsity is not None:
            parts = [part for group in self.groups.values() for part in group.parts]
            layers = sum(isinstance(part, FFNPart) for part in parts)
            check_sparsity(self.sparsity, layers, f"{where}: sparsity")


def _checksum(data: dict[str, Any]) -> str:
    """xxh3_64 of the manifest without its checksum, as compact JSON with sorted keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def _group(name: str, groups: dict[str, Any], where: str) -> GroupEntry:
    where = f"{where}: group {name!r}"
    data = field(groups, name, dict, where)
    parts = tuple(part_from_json(part, where) for part in field(data, "parts", list, where))
    first = 0
    for part in parts:
        if part.first_unit != first:
            raise CorruptModel(
                f"{where}: {part.role} begins at unit {part.first_unit}, not {first}"
            )
        first += part.units
    if not parts:
        raise CorruptModel(f"{where}: has no parts")
    return GroupEntry(field(data, "file", str, where), parts, _hash(data, "index_xxh3", where))


def _file(name: str, files: dict[str, Any], where: str) -> FileEntry:
    if not _SAFE_NAME.fullmatch(name) or name == FILE_NAME or PurePosixPath(name).name != name:
        raise CorruptModel(f"{where}: {name!r} is not the name of a file in the model's folder")
    data = field(files, name, dict, f"{where}: {name}")
    return FileEntry(field(data, "bytes", int, where), _hash(data, "xxh3", f"{where}: {name}"))


def _hash(data: dict[str, Any], key: str, where: str) -> str:
    value: str = field(data, key, str, where)
    if not _HASH.fullmatch(value):
        raise CorruptModel(f"{where}: {key} is {value[:40]!r}, expected 16 hex digits")
    return value
