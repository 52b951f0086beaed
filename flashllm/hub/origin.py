"""origin.json, beside a stored model: the file or the repository that it was converted from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from flashllm.documents import parse_object
from flashllm.errors import FlashError, ModelIOError
from flashllm.flash.output import write_error

FILE_NAME = "origin.json"
_MAX_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model came from.

    source: a repository of the hub, or an absolute path. revision and commit: the repository's.
    files: what tells the source's files from changed ones, by name: bytes, and the modification
    time in nanoseconds of a local file or the hub's SHA-256, as text.
    """

    source: str
    files: dict[str, str]
    revision: str | None = None
    commit: str | None = None
    licence: str | None = None

    @property
    def text(self) -> str:
        """The source for human eyes."""
        return f"{self.source} at {self.commit[:12]}" if self.commit else self.source


def read_origin(model: Path) -> Origin | None:
    """The origin of the model in the folder `model`; None if it has none that can be read."""
    path = model / FILE_NAME
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        data = parse_object(path.read_bytes(), str(path), _MAX_BYTES)
        origin = Origin(**data)
    except (OSError, FlashError, TypeError):
        return None
    texts = (origin.revision, origin.commit, origin.licence)
    sound = isinstance(origin.source, str) and isinstance(origin.files, dict)
    return (
        origin if sound and all(text is None or isinstance(text, str) for text in texts) else None
    )


def write_origin(model: Path, origin: Origin) -> None:
    """Leave `origin` in the folder `model`. Raises DiskFull or ModelIOError."""
    path = model / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.new")
    try:
        temporary.write_text(json.dumps(dataclasses.asdict(origin), indent=1) + "\n", "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from None


def marks_of(files: list[Path]) -> dict[str, str]:
    """What tells these local files from changed ones: size and modification time of each.

    Raises ModelIOError.
    """
    marks = {}
    for file in files:
        try:
            status = file.stat()
        except OSError as error:
            raise ModelIOError(f"{file}: cannot read: {error.strerror}", file) from None
        marks[file.name] = f"{status.st_size} {status.st_mtime_ns}"
    return marks
