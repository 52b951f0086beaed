"""What was measured of this computer, kept in the user's cache folder: one file for each disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs

from flashllm.errors import InvalidInput
from flashllm.read_speed import ReadSpeed

_LARGEST_FILE = 1 << 20


def file_for(folder: Path) -> Path:
    """Where the speeds of this computer with the disk under `folder` are kept, or would be.

    FLASHLLM_CACHE, else the user's cache directory. A disk is told by its device number and its
    size: the number alone may pass to another disk that is plugged in later. Raises OSError.
    """
    existing = next(
        place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()
    )
    disk = f"{existing.stat().st_dev:x}-{shutil.disk_usage(existing).total:x}"
    named = os.environ.get("FLASHLLM_CACHE")
    base = Path(named) if named else platformdirs.user_cache_path("flashllm")
    return base / "speed" / f"{disk}.json"


def load(path: Path) -> ReadSpeed | None:
    """What the file `path` says; None if there is none, or a damaged one: measure it anew."""
    with contextlib.suppress(OSError, ValueError, RecursionError, InvalidInput):
        if path.stat().st_size <= _LARGEST_FILE:
            return ReadSpeed.from_json(json.loads(path.read_bytes()))
    return None


def save(speed: ReadSpeed, path: Path) -> None:
    """Write the speeds to `path`, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(speed.to_json(), file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
