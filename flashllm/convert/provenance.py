"""What a model was made of: its source's headers and files, read without reading any weights."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from flashllm.errors import ModelIOError
from flashllm.formats.checkpoint import Checkpoint
from flashllm.formats.hf import CONFIG

PIECE = 1 << 20


@dataclasses.dataclass(frozen=True)
class Provenance:
    """The SHA-256 of a checkpoint's headers, and its files: name, bytes, modification time in ns.

    Headers are config.json, if the checkpoint is a folder, and of each file of weights, in order,
    what comes before the first weight.
    """

    name: str
    format: str
    headers_sha256: str
    files: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Provenance:
        """Read the headers of `checkpoint`. Raises ModelIOError."""
        digest = hashlib.sha256()
        files = list(checkpoint.files)
        if checkpoint.kind == "safetensors":
            files.insert(0, checkpoint.path / CONFIG)
        marks = []
        for file in files:
            offsets = [t.offset for t in checkpoint.tensors.values() if t.file == file]
            try:
                stat = file.stat()
                _hash_beginning(digest, file, min(offsets, default=stat.st_size))
            except OSError as error:
                raise ModelIOError(f"{file}: cannot read: {error.strerror}", file) from None
            marks.append((file.name, stat.st_size, stat.st_mtime_ns))
        name = checkpoint.path.name or checkpoint.path.absolute().name
        return cls(name, checkpoint.kind, digest.hexdigest(), tuple(marks))

    def to_json(self) -> dict[str, Any]:
        """The manifest's `source`."""
        return {
            "path": self.name,
            "format": self.format,
            "headers_sha256": self.headers_sha256,
            "files": {name: size for name, size, _ in self.files},
        }

    def identity(self) -> list[Any]:
        """What a source must share with another to be the same, as JSON."""
        return [self.format, self.headers_sha256, *(list(mark) for mark in self.files)]


def _hash_beginning(digest: Any, path: Path, count: int) -> None:
    with path.open("rb") as file:
        while count and (piece := file.read(min(PIECE, count))):
            digest.update(piece)
            count -= len(piece)
