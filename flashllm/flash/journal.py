"""What of a model is on the disk for good, so that an interrupted writer can go on.

A text file: each line is the xxh3_64 of the rest of the line, a space, and a JSON object. The first
line says what is being written; each other one, that a group of units is, or a whole file. A line
is appended when what it says is synced, and synced itself: what a crash cuts short is ignored.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from flashllm.documents import parse_object
from flashllm.errors import CorruptModel
from flashllm.flash.output import write_error

FILE_NAME = "journal"
MAX_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True, eq=False)
class GroupDone:
    """A group whose units are written: their checksums, uint64 [units], and what was noted.

    lengths: bytes of each unit, int64 [units], where its plan does not say.
    """

    group: str
    checksums: NDArray[np.uint64]
    notes: Mapping[str, Any]
    lengths: NDArray[np.int64] | None = None

    def to_json(self) -> dict[str, Any]:
        """The journal's line."""
        data = self.checksums.astype("<u8").tobytes().hex()
        lengths = None if self.lengths is None else self.lengths.tolist()
        return {"group": self.group, "xxh3": data, "notes": self.notes, "lengths": lengths}


@dataclasses.dataclass(frozen=True)
class FileDone:
    """A file of units that is whole: its length and the xxh3_64 of its bytes."""

    file: str
    nbytes: int
    xxh3: str

    def to_json(self) -> dict[str, Any]:
        """The journal's line."""
        return dataclasses.asdict(self)


Entry = GroupDone | FileDone


class Journal:
    """A journal being written. Appended lines are on the disk when `append` returns."""

    def __init__(self, path: Path, identity: Mapping[str, Any], entries: Sequence[Entry] = ()):
        """Start the journal at `path` anew with these lines. Raises DiskFull, ModelIOError."""
        self._path = path
        fresh = path.with_name(f"{path.name}.new")
        lines = [dict(identity), *(entry.to_json() for entry in entries)]
        try:
            with fresh.open("wb", buffering=0) as file:
                _write(file, b"".join(_line(line) for line in lines))
            fresh.replace(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from None

    def append(self, entries: Sequence[Entry]) -> None:
        """Note that these are on the disk. Raises DiskFull, ModelIOError."""
        try:
            _write(self._file, b"".join(_line(entry.to_json()) for entry in entries))
        except OSError as error:
            raise write_error(self._path, error) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journal(path: Path) -> tuple[dict[str, Any] | None, list[Entry]]:
    """What the journal at `path` says: its identity (None if unreadable), and its sound lines."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None, []
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return None, []
    identity, entries = None, []
    for line in lines:
        checksum, _, body = line.partition(b" ")
        if checksum != xxhash.xxh3_64_hexdigest(body).encode() or not body:
            break
        try:
            data = parse_object(body, str(path), MAX_BYTES)
            if identity is None:
                identity = data
            else:
                entries.append(_entry(data))
        except (CorruptModel, ValueError, KeyError, TypeError):
            break
    return identity, entries


def _write(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _line(data: Mapping[str, Any]) -> bytes:
    body = json.dumps(data, separators=(",", ":")).encode()
    return f"{xxhash.xxh3_64_hexdigest(body)} ".encode() + body + b"\n"


def _entry(data: dict[str, Any]) -> Entry:
    """Raises ValueError, KeyError or TypeError for anything else."""
    if "group" in data:
        checksums = np.frombuffer(bytes.fromhex(data["xxh3"]), "<u8").astype(np.uint64)
        if not isinstance(data["group"], str) or not isinstance(data["notes"], dict):
            raise TypeError("a group's line")
        lengths = None if data["lengths"] is None else np.array(data["lengths"], np.int64)
        if lengths is not None and lengths.shape != checksums.shape:
            raise ValueError("a length for each checksum")
        return GroupDone(data["group"], checksums, data["notes"], lengths)
    if not isinstance(data["file"], str) or not isinstance(data["xxh3"], str):
        raise TypeError("a file's line")
    return FileDone(data["file"], int(data["nbytes"]), data["xxh3"])
