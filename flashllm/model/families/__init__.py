"""The model families flashllm runs, found by the architecture name a checkpoint carries."""

from __future__ import annotations

from flashllm.errors import UnsupportedModel
from flashllm.model.families import llama
from flashllm.model.families.base import Family

FAMILIES: tuple[Family, ...] = (llama.FAMILY,)


def family_of(architecture: str) -> Family:
    """The family that runs `architecture` (GGUF's general.architecture).

    Raises UnsupportedModel, naming what is supported.
    """
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.architectures))
    raise UnsupportedModel(
        f"architecture {architecture!r} is not supported; this version runs: {known}"
    )
