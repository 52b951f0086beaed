"""Manifests of known models: where weights come from, their shape, how to run them."""

from __future__ import annotations

import dataclasses
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashllm.errors import CorruptModel, FlashError
from flashllm.hub.sources import HubSource, WheelSource, check_form

DEFAULT_MODEL = "smollm2-135m-instruct"

# An installed package carries the manifests beside this file; a checkout has them at its top.
INSTALLED = Path(__file__).parent / "manifests"
CHECKOUT = Path(__file__).parents[2] / "models"

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}(:[a-z0-9][a-z0-9._-]{0,40})?")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
_DTYPES = {"bfloat16": ("bf16", 2), "float16": ("f16", 2), "float32": ("f32", 4)}
"""torch_dtype: our name of it, bytes of a number."""

_SOURCES: dict[str, type[WheelSource] | type[HubSource]] = {
    "pip-wheel": WheelSource,
    "hub": HubSource,
}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One known model.

    parameters: how many numbers its weights are. recommended: sampling settings by their flag's
    name. shape: those keys of the original model's config.json from which sizes follow.
    """

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    homepage: str
    architecture: str
    context: int
    parameters: int
    source: WheelSource | HubSource
    recommended: Mapping[str, float]
    shape: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_form("name", self.name, NAME)
        for alias in self.aliases:
            check_form("alias", alias, _ALIAS)
        for field in ("description", "licence", "homepage", "architecture"):
            if not isinstance(value := getattr(self, field), str) or not value:
                raise CorruptModel(f"{field} is {value!r}, expected text")
        for field in ("context", "parameters"):
            if type(value := getattr(self, field)) is not int or value <= 0:
                raise CorruptModel(f"{field} is {value!r}, expected a whole number")
        for setting, value in self.recommended.items():
            if setting not in _SETTINGS or isinstance(value, bool):
                raise CorruptModel(f"recommended: {setting} = {value!r}; known: {_SETTINGS}")
            if not isinstance(value, (int, float)):
                raise CorruptModel(f"recommended: {setting} is {value!r}, expected a number")
        if self.shape.get("torch_dtype") not in _DTYPES:
            raise CorruptModel(f"shape: torch_dtype must be one of {', '.join(_DTYPES)}")

    def quant(self, asked: str | None = None) -> str:
        """What the weights will be: as the user asked, or as the source has or makes them."""
        if isinstance(self.source, WheelSource):
            return self.source.quant
        chosen = asked or self.source.file or self.source.dtype
        return _DTYPES[self.shape["torch_dtype"]][0] if chosen.lower() == "keep" else chosen

    @property
    def download_bytes(self) -> int | None:
        """What must be fetched, about; None if only the hub can tell."""
        if isinstance(self.source, WheelSource):
            return self.source.wheel_bytes
        whole = self.parameters * _DTYPES[self.shape["torch_dtype"]][1]
        return whole if self.source.file is None else None


def known(folders: Iterable[Path] = (INSTALLED, CHECKOUT)) -> dict[str, Manifest]:
    """Every manifest in the first of `folders` that holds any, by model name.

    Raises CorruptModel, naming the file, if one is malformed.
    """
    for folder in folders:
        if files := sorted(folder.glob("*.toml")):
            manifests = [read_manifest(file) for file in files]
            return {manifest.name: manifest for manifest in manifests}
    return {}


def find(name: str) -> Manifest | None:
    """The manifest whose name or alias is `name`, letter case aside."""
    wanted = name.casefold()
    for manifest in known().values():
        if wanted in (manifest.name, *manifest.aliases):
            return manifest
    return None


def find_with_quant(text: str) -> tuple[Manifest, str | None] | None:
    """The manifest that `text` names, and what follows its last colon if that is no alias."""
    if manifest := find(text):
        return manifest, None
    name, colon, quant = text.rpartition(":")
    manifest = find(name) if colon and quant else None
    return (manifest, quant) if manifest else None


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed_ns: int) -> Manifest:
    return _parse(tomllib.loads(path.read_text(encoding="utf-8")))


def read_manifest(path: Path) -> Manifest:
    """The manifest in the TOML file `path`. Raises CorruptModel if it is not one."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (FlashError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptModel(f"model manifest {path}: {error}") from None


def _parse(data: dict[str, Any]) -> Manifest:
    source = data.pop("source", None)
    kind = source.pop("kind", None) if isinstance(source, dict) else None
    if not isinstance(kind, str) or kind not in _SOURCES:
        raise CorruptModel(f"source.kind is unknown; this version knows {', '.join(_SOURCES)}")
    aliases = data.pop("aliases", [])
    recommended, shape = data.pop("recommended", {}), data.pop("shape", None)
    if not isinstance(aliases, list) or not isinstance(recommended, dict):
        raise CorruptModel("aliases must be a list and recommended a table")
    if not isinstance(shape, dict):
        raise CorruptModel("shape must be a table: keys of the model's config.json")
    try:
        return Manifest(
            source=_SOURCES[kind](**source),
            aliases=tuple(aliases),
            recommended=recommended,
            shape=shape,
            **data,
        )
    except TypeError as error:  # a key missing or unknown
        raise CorruptModel(str(error)) from None
