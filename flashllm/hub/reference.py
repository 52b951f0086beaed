"""How a user names a model of the Hugging Face hub: owner/name, owner/name:quant, …@revision."""

from __future__ import annotations

import dataclasses
import hashlib
import re

from flashllm.errors import InvalidInput

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REFERENCE = re.compile(
    rf"(?:hf\.co/|https://huggingface\.co/)?(?P<repo>{_PART}/{_PART})/?"
    r"(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._/-]{0,99}))?"
    r"(?::(?P<quant>[A-Za-z0-9][A-Za-z0-9._-]{0,199}))?"
)
_FILES = (".gguf", ".safetensors", ".bin", ".json", ".toml", ".flash")
_LONGEST_NAME = 90
MAIN = "main"


@dataclasses.dataclass(frozen=True)
class HubReference:
    """A repository of the hub; `quant`: which of its files, or the dtype to convert to."""

    repo: str
    quant: str | None = None
    revision: str = MAIN

    def __str__(self) -> str:
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repo}{revision}" + (f":{self.quant}" if self.quant else "")

    @property
    def store_name(self) -> str:
        """The model's name in the store: owner--name, then the revision and the quant, if any."""
        parts = [self.repo.replace("/", "--")]
        if self.revision != MAIN:
            parts.append(f"at-{self.revision}")
        if self.quant:
            parts.append(self.quant.removesuffix(".gguf"))
        name = re.sub(r"[^a-z0-9._-]", "-", "--".join(parts).lower())
        if len(name) > _LONGEST_NAME:
            name = f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return name


def parse_reference(text: str, revision: str | None = None) -> HubReference | None:
    """The repository that `text` names, or None if it is not of the form; `revision` is --revision.

    What ends like a file's name is taken for a path that does not exist. Raises InvalidInput for
    two revisions that differ.

    >>> parse_reference("bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M")
    HubReference(repo='bartowski/Llama-3.2-1B-Instruct-GGUF', quant='Q4_K_M', revision='main')
    >>> parse_reference("models/missing.gguf") is None
    True
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or match["repo"].lower().endswith(_FILES) or ".." in match["repo"]:
        return None
    found = match["revision"]
    if found and revision and found != revision:
        raise InvalidInput(f"{text} names revision {found!r}, --revision {revision!r}; name one")
    return HubReference(match["repo"], match["quant"], found or revision or MAIN)
