"""A checkpoint of another format into the store: converted once, then found again."""

from __future__ import annotations

import glob
import hashlib
import re
from pathlib import Path

from flashllm.flash.lock import locked
from flashllm.formats.hf import CONFIG, INDEX
from flashllm.formats.opening import open_checkpoint
from flashllm.hub import store
from flashllm.hub.origin import Origin, marks_of, read_origin, write_origin
from flashllm.hub.repository import SIDE_FILES
from flashllm.hub.workshop import Workshop, check_room

_PART = re.compile(r"-\d{5}-of-(\d{5})$")
_LONGEST_STEM = 60


def is_foreign(path: Path) -> bool:
    """Whether `path` is there, and may be a checkpoint: a file, or a folder with a config.json."""
    return path.is_file() or (path / CONFIG).is_file()


def stored_foreign(path: Path, workshop: Workshop, dtype: str = "keep") -> Path:
    """The folder, in the store, of the checkpoint at `path`, converted first unless it was before.

    It is found again by its path, if neither size nor modification time of its files changed; a
    changed one is converted anew and replaces what it was. The source is only read.

    Raises what opening and converting a checkpoint raise, DiskFull and ModelIOError.
    """
    path = path.expanduser().absolute()
    files = _files(path)
    source = path if path.is_dir() else files[0]  # of a split file, any part is it
    target = store.place_for(store_name(source, dtype))
    marks = marks_of(files)
    if _is_current(target, source, marks):
        return target
    open_checkpoint(path)  # refuses what is none, before anything is made for it

    def tell_waiting() -> None:
        workshop.say(f"another flashllm is converting {path.name}; waiting for it")

    with locked(store.lock_of(target), on_wait=tell_waiting):
        if _is_current(target, source, marks):  # whoever we waited for has converted it
            return target
        outlook = workshop.plan(path, dtype, 0)
        workshop.say(f"{outlook.summary}.")
        check_room(target.parent, outlook.stored_bytes, f"converting {path.name}")
        changed = ", which has changed," if target.exists() else ""
        workshop.say(f"converting {path}{changed} to {target}")
        workshop.convert(
            path,
            target,
            dtype=dtype,
            name=target.name,
            overwrite=target.exists(),
            on_progress=workshop.on_progress,
            on_message=workshop.say,
        )
        write_origin(target, Origin(str(source), marks))
    return target


def store_name(path: Path, dtype: str) -> str:
    """A name for the store: the file's, and what tells files of one name apart."""
    stem = _PART.sub("", path.name if path.is_dir() else path.stem).lower()
    stem = re.sub(r"[^a-z0-9._-]+", "-", stem)[:_LONGEST_STEM].strip("-._") or "model"
    identity = hashlib.sha256(f"{path}\0{dtype}".encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{stem}-{identity}" if dtype == "keep" else f"{stem}-{dtype}-{identity}"


def _files(path: Path) -> list[Path]:
    """The files whose change makes another model of the checkpoint at `path`, the first first."""
    if path.is_dir():
        beside = (CONFIG, INDEX, *SIDE_FILES)
        weights = sorted(path.glob("*.safetensors"))
        return weights + [path / name for name in beside if (path / name).is_file()]
    part = _PART.search(path.stem)
    if part is None:
        return [path]
    pattern = f"{glob.escape(path.stem[: part.start()])}-?????-of-{part[1]}{path.suffix}"
    return sorted(path.parent.glob(pattern))


def _is_current(target: Path, source: Path, marks: dict[str, str]) -> bool:
    """Whether `target` was made from `source` as it is now."""
    origin = read_origin(target) if store.is_model(target) else None
    return origin is not None and (origin.source, origin.files) == (str(source), marks)
