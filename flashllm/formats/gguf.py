"""An open GGUF file: its header, already checked, then its tensors' raw bytes on request.

Weights are read by explicit reads, never mapped: a mapped file that shrinks kills the process.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from flashllm.errors import CorruptModel, ModelIOError, ModelNotFound
from flashllm.formats.gguf_header import GGUFHeader, GGUFTensor, HeaderParser

__all__ = ["GGUFFile", "GGUFHeader", "GGUFTensor", "read_header"]


class GGUFFile:
    """An open GGUF file: its header, and its tensors' raw bytes on request."""

    def __init__(self, path: Path):
        """Raises ModelNotFound, ModelIOError, CorruptModel or UnsupportedModel."""
        self.path = path
        self._file = _open(path)
        try:
            self.size = self._file.seek(0, 2)
            self.header = HeaderParser(path, self._file, self.size).header()
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> np.ndarray:
        """The raw bytes of a tensor: uint8 [nbytes]. Raises CorruptModel or ModelIOError."""
        return self.read_rows(name, 0, _rows(self.tensor(name))).reshape(-1)

    def read_rows(self, name: str, first: int, count: int) -> np.ndarray:
        """Raw bytes of `count` rows (last axis) from row `first`: uint8 [count, bytes of a row]."""
        tensor = self.tensor(name)
        rows = _rows(tensor)
        if not 0 <= first <= first + count <= rows:
            raise IndexError(f"rows {first}..{first + count} of {name}, which has {rows}")
        row_bytes = tensor.nbytes // rows
        out = np.empty((count, row_bytes), np.uint8)
        self._read_into(out.reshape(-1).data, tensor.offset + first * row_bytes)
        return out

    def tensor(self, name: str) -> GGUFTensor:
        """The tensor called `name`, or CorruptModel."""
        if name not in self.header.tensors:
            raise CorruptModel(f"{self.path}: tensor {name!r} is missing; the file is incomplete")
        return self.header.tensors[name]

    def close(self) -> None:
        """Close the file; reads fail afterwards."""
        self._file.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _read_into(self, out: memoryview, offset: int) -> None:
        done = 0
        try:
            self._file.seek(offset)
            while done < len(out):
                got = self._file.readinto(out[done:])  # type: ignore[attr-defined]
                if not got:
                    message = (
                        f"{self.path}: ends at byte {offset + done}; it changed while being read"
                    )
                    raise ModelIOError(message, self.path, offset + done)
                done += got
        except OSError as error:
            message = f"{self.path}: cannot read at byte {offset + done}: {error.strerror}"
            raise ModelIOError(message, self.path, offset + done) from None


def read_header(path: Path) -> GGUFHeader:
    """The header of the GGUF file at `path`. Raises as GGUFFile does."""
    with GGUFFile(path) as file:
        return file.header


def _rows(tensor: GGUFTensor) -> int:
    return math.prod(tensor.shape[:-1])


def _open(path: Path) -> BinaryIO:
    """`path` for buffered reading, the buffer sized so that a header takes few reads."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise ModelNotFound(f"{path}: {what}; expected a GGUF file")
    try:
        return path.open("rb", buffering=1 << 18)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None
