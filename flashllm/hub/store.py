"""The local model store: one folder per model, found by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from flashllm.errors import InvalidInput, ModelIOError, ModelNotFound
from flashllm.hub import manifests
from flashllm.hub.manifests import Manifest
from flashllm.hub.reference import HubReference, parse_reference
from flashllm.hub.repository import PREFERRED
from flashllm.hub.workshop import HOME_VARIABLE

MANIFEST_FILE = "manifest.json"
REMOVED = ".removed-"
_DOWNLOAD = ".download-"


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model in the store. `bytes` counts all its files; `dtype` and `family` may be unknown."""

    name: str
    path: Path
    bytes: int
    dtype: str
    family: str


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """An interrupted download: the repository, where its files are, the bytes that came."""

    repo: str
    path: Path
    bytes: int


def models_dir() -> Path:
    """Where models are kept: $FLASHLLM_HOME/models, or the user's data directory."""
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().absolute() / "models"
    return Path(platformdirs.user_data_dir("flashllm", appauthor=False)) / "models"


def list_models() -> list[StoredModel]:
    """Every model in the store, by name; one with an unreadable manifest too."""
    return [_describe(path) for path in sorted(models_dir().glob("*")) if is_model(path)]


def list_unfinished() -> list[Unfinished]:
    """Every interrupted download, which pulling the model goes on with."""
    return [
        Unfinished(_repo_of(path), path, _bytes_under(path))
        for path in sorted(models_dir().glob(f"{_DOWNLOAD}*"))
    ]


def find(name_or_path: str | Path) -> Path:
    """The folder of a converted model, given its path, or its name or alias in the store.

    Raises ModelNotFound, saying how to get the model or what there is.
    """
    path = Path(name_or_path).expanduser()
    if is_model(path):
        return path
    text = str(name_or_path)
    if stored := in_store(text):
        return stored
    raise ModelNotFound(_advice(text, path))


def in_store(name: str) -> Path | None:
    """The folder of the stored model that `name` means, if there is one.

    name: a name in the store, a known model's name or alias, or owner/name[:quant] of the hub.
    """
    for candidate in _names(name):
        if manifests.NAME.fullmatch(candidate) and is_model(models_dir() / candidate):
            return models_dir() / candidate
    return None


def place_for(name: str) -> Path:
    """The folder of a new model called `name`. Raises InvalidInput if that is no model name."""
    if not manifests.NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} is not a model name; use lower-case letters, digits, '.', '-' and '_'"
        )
    return models_dir() / name


def known_name(manifest: Manifest, quant: str | None) -> str:
    """The name in the store of a known model; with the quant, if it is not the manifest's."""
    return f"{manifest.name}--{quant.lower()}" if quant else manifest.name


def workspace_for(repo: str, commit: str) -> Path:
    """Where the files of a repository of the hub wait until they are converted."""
    return models_dir() / f"{_DOWNLOAD}{repo.replace('/', '--')}-{commit[:12]}"


def lock_of(folder: Path) -> Path:
    """The lock file of whoever writes `folder`."""
    return models_dir() / ".locks" / folder.name.lstrip(".")


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


def remove_unfinished(unfinished: Unfinished) -> None:
    """Delete an interrupted download. Raises ModelIOError if the system refuses."""
    try:
        shutil.rmtree(unfinished.path)
    except OSError as error:
        what = f"cannot remove {unfinished.path}: {error.strerror or error}"
        raise ModelIOError(what, unfinished.path) from error


def is_model(path: Path) -> bool:
    """Whether `path` is the folder of a model in the flash format."""
    return not path.name.startswith(".") and (path / MANIFEST_FILE).is_file()


def _names(name: str) -> Iterator[str]:
    """What the model that `name` means may be called in the store, the likeliest first."""
    yield name
    yield name.casefold()
    if found := manifests.find_with_quant(name):
        yield known_name(*found)
    if reference := parse_reference(name):
        yield from _hub_names(reference)


def _hub_names(reference: HubReference) -> Iterator[str]:
    if reference.quant and reference.quant.lower() == "keep":
        reference = dataclasses.replace(reference, quant=None)
    yield reference.store_name
    if reference.quant is None:  # which of a GGUF repository's files was taken, if any
        for quant in PREFERRED:
            yield dataclasses.replace(reference, quant=quant).store_name


def _describe(path: Path) -> StoredModel:
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        dtype, family = str(manifest["dtype"]), str(manifest["config"]["family"])
    except (OSError, ValueError, KeyError, TypeError):
        dtype = family = "unreadable"
    return StoredModel(path.name, path, _bytes_under(path), dtype, family)


def _bytes_under(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _repo_of(workspace: Path) -> str:
    """The repository whose files wait in `workspace`: owner--name-commit."""
    name = workspace.name.removeprefix(_DOWNLOAD).rpartition("-")[0]
    return name.replace("--", "/", 1)


def _advice(name: str, path: Path) -> str:
    """Why `name` was not found, with what to do about it."""
    if path.exists():
        return (
            f"{path} is not a model in the flash format; `flashllm convert {path}` makes it one, "
            "and `chat`, `run` and `plan` take a checkpoint as it is"
        )
    if found := manifests.find_with_quant(name):
        fetch = f"fetch it with `flashllm pull {name}`"
        return f"{found[0].name} is not on this computer; {fetch}"
    if reference := parse_reference(name):
        return f"{reference} is not on this computer; fetch it with `flashllm pull {reference}`"
    stored = ", ".join(model.name for model in list_models()) or "none yet"
    return (
        f"no model called {name!r}; in the store: {stored}; `flashllm ls --available` lists what "
        "`flashllm pull` knows, and it takes owner/name of the Hugging Face hub"
    )
