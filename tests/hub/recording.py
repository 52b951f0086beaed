"""A workshop that records: it keeps the bytes it is given, as if they had been converted."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flashllm.formats.checkpoint import Checkpoint
from flashllm.formats.opening import open_checkpoint
from flashllm.hub.workshop import Workshop


@dataclasses.dataclass(frozen=True)
class Planned:
    """An Outlook."""

    stored_bytes: int = 1000
    summary: str = "planned: it fits"


class Recorder:
    """What a workshop was asked: `planned` and `converted` hold the checkpoint as it was opened."""

    def __init__(self, failure: BaseException | None = None):
        self.failure = failure
        self.planned: list[Checkpoint] = []
        self.to_fetch = -1
        self.converted: list[tuple[Checkpoint, str]] = []
        self.messages: list[str] = []
        self.progress: list[tuple[int, int]] = []
        self.weights: dict[str, bytes] = {}

    def workshop(self) -> Workshop:
        return Workshop(
            self.convert,
            self.plan,
            lambda done, total: self.progress.append((done, total)),
            self.messages.append,
        )

    def plan(self, source: Path, dtype: str, fetched: int) -> Planned:
        self.planned.append(open_checkpoint(source))
        self.to_fetch = fetched
        return Planned()

    def convert(self, source: Path, target: Path, *, dtype: str, **options: Any) -> Path:
        if self.failure is not None:
            raise self.failure
        checkpoint = open_checkpoint(source)
        self.converted.append((checkpoint, dtype))
        self.weights = {file.name: file.read_bytes() for file in checkpoint.files}
        target.mkdir(parents=True, exist_ok=options["overwrite"])
        (target / "manifest.json").write_text("{}")
        return target
