"""A foreign checkpoint whose headers have been read and checked; its weights stay on disk."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

from flashllm.errors import CorruptModel


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: shape (rows, cols) or (size,), element or block type, file, bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int
    nbytes: int

    @property
    def rows(self) -> int:
        """Runs of the last axis; a vector is one row."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.nbytes // self.rows


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The headers of a checkpoint. Every tensor lies inside its file, and none overlap.

    path: what the user named, a file or a folder. metadata: GGUF's keys, or config.json.
    files: those that hold weights, in order.
    """

    path: Path
    kind: Literal["gguf", "safetensors"]
    metadata: dict[str, object]
    tensors: dict[str, Tensor]
    files: tuple[Path, ...]

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, or CorruptModel."""
        if name not in self.tensors:
            raise CorruptModel(f"{self.path}: tensor {name!r} is missing; the file is incomplete")
        return self.tensors[name]
