"""What this room needs of the rooms beside it: handed in by whoever stands above them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flashllm import machine
from flashllm.errors import DiskFull
from flashllm.sizes import format_size

Progress = Callable[[int, int], None]
HOME_VARIABLE = "FLASHLLM_HOME"
_SPARE_BYTES = 64 << 20


class Converter(Protocol):
    """convert.convert."""

    def __call__(
        self,
        source: Path,
        target: Path,
        *,
        dtype: str,
        name: str | None,
        overwrite: bool,
        on_progress: Progress | None,
        on_message: Callable[[str], None] | None,
    ) -> Path: ...


class Outlook(Protocol):
    """What is known of a model from its headers alone."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of disk that the converted model takes."""

    @property
    def summary(self) -> str:
        """One sentence: what it is, how large, whether it fits this computer's memory."""


@dataclasses.dataclass(frozen=True)
class Workshop:
    """How to plan and convert a checkpoint, and how to tell the user.

    plan(source, dtype, bytes still to fetch) reads headers only, and raises what opening the
    checkpoint raises. say
    announces a stage, on_progress then counts it as (bytes done, bytes in all).
    """

    convert: Converter
    plan: Callable[[Path, str, int], Outlook]
    on_progress: Progress = lambda done, total: None
    say: Callable[[str], None] = lambda text: None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise DiskFull unless the disk of `folder` has `needed` bytes and a little more."""
    needed += _SPARE_BYTES
    if (free := machine.free_disk(folder)) < needed:
        raise DiskFull(
            f"{what} needs {format_size(needed)} free at {folder}, which has {format_size(free)}; "
            f"free some space, or set {HOME_VARIABLE} to a folder on a larger disk",
            folder,
        )
