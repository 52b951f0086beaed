"""The local model store: one folder per model, found by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import platformdirs

from flashllm.errors import InvalidInput, ModelIOError, ModelNotFound
from flashllm.hub import manifests

MANIFEST_FILE = "manifest.json"
HOME_VARIABLE = "FLASHLLM_HOME"
REMOVED = ".removed-"


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model in the store. `bytes` counts all its files; `dtype` and `family` may be unknown."""

    name: str
    path: Path
    bytes: int
    dtype: str
    family: str


def models_dir() -> Path:
    """Where models are kept: $FLASHLLM_HOME/models, or the user's data directory."""
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().absolute() / "models"
    return Path(platformdirs.user_data_dir("flashllm", appauthor=False)) / "models"


def list_models() -> list[StoredModel]:
    """Every model in the store, by name; one with an unreadable manifest too."""
    return [_describe(path) for path in sorted(models_dir().glob("*")) if _is_model(path)]


def find(name_or_path: str | Path) -> Path:
    """The folder of a converted model, given its path, or its name or alias in the store.

    Raises ModelNotFound, saying how to get the model or what there is.
    """
    path = Path(name_or_path).expanduser()
    if _is_model(path):
        return path
    text = str(name_or_path)
    if stored := in_store(text):
        return stored
    raise ModelNotFound(_advice(text, path))


def in_store(name: str) -> Path | None:
    """The folder of the stored model called `name` (or an alias of it), if there is one."""
    manifest = manifests.find(name)
    for candidate in {name, name.casefold(), manifest.name if manifest else name}:
        if manifests.NAME.fullmatch(candidate) and _is_model(models_dir() / candidate):
            return models_dir() / candidate
    return None


def place_for(name: str) -> Path:
    """The folder of a new model called `name`. Raises InvalidInput if that is no model name."""
    if not manifests.NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is not a model name; use lower-case letters, digits, '.', '-' and '_'"
        )
    return models_dir() / name


def remove(name: str) -> Path:
    """Delete the stored model called `name` (or an alias); returns the folder it was in.

    The folder is renamed first, so that an interrupted removal leaves no half model behind.
    Raises ModelNotFound, or ModelIOError if the system refuses.
    """
    path = in_store(name)
    if path is None:
        raise ModelNotFound(_advice(name, Path(name)))
    doomed = path.with_name(f"{REMOVED}{path.name}-{os.getpid()}")
    try:
        path.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise ModelIOError(f"cannot remove {path}: {error.strerror or error}", path) from error
    return path


def _is_model(path: Path) -> bool:
    return not path.name.startswith(".") and (path / MANIFEST_FILE).is_file()


def _describe(path: Path) -> StoredModel:
    size = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        dtype, family = str(manifest["dtype"]), str(manifest["config"]["family"])
    except (OSError, ValueError, KeyError, TypeError):
        dtype = family = "unreadable"
    return StoredModel(path.name, path, size, dtype, family)


def _advice(name: str, path: Path) -> str:
    """Why `name` was not found, with what to do about it."""
    if path.is_file():
        return f"{path} is a file, not a converted model; run `flashllm convert {path}` first"
    if path.is_dir():
        return f"{path} is not a converted model: it has no {MANIFEST_FILE}"
    if manifest := manifests.find(name):
        fetch = f"fetch it with `flashllm pull {manifest.name}`"
        return f"{manifest.name} is not on this computer; {fetch}"
    stored = ", ".join(model.name for model in list_models()) or "none yet"
    can_pull = ", ".join(sorted(manifests.known()))
    return f"no model called {name!r}; in the store: {stored}; `flashllm pull` knows: {can_pull}"
