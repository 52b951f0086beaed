"""GGUF files: their headers, checked."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from flashllm.errors import ModelIOError, ModelNotFound
from flashllm.formats.checkpoint import Checkpoint
from flashllm.formats.gguf_header import GGUFHeader, HeaderParser


def read_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file at `path`.

    Raises ModelNotFound, ModelIOError, CorruptModel or UnsupportedModel.
    """
    header = read_header(path)
    return Checkpoint(path, "gguf", header.metadata, header.tensors, (path,))


def read_header(path: Path) -> GGUFHeader:
    """The header of the GGUF file at `path`. Raises as read_gguf does."""
    with _open(path) as file:
        return HeaderParser(path, file, file.seek(0, 2)).header()


def _open(path: Path) -> BinaryIO:
    """`path` for buffered reading, the buffer sized so that a header takes few reads."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise ModelNotFound(f"{path}: {what}; expected a GGUF file")
    try:
        return path.open("rb", buffering=1 << 18)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None
