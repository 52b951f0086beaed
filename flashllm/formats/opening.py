"""Opens whatever checkpoint the user named: a GGUF file or a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from flashllm.errors import ModelIOError, ModelNotFound
from flashllm.formats.checkpoint import Checkpoint
from flashllm.formats.gguf import read_gguf
from flashllm.formats.hf import CONFIG, INDEX, SINGLE, read_hf
from flashllm.formats.refused import refusal_of_file, refusal_of_folder

HEAD = 64  # bytes that tell kinds of files apart


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`, its headers read and checked; no weights are read.

    A GGUF file, of a split one any part; or a folder with config.json and model.safetensors, or
    shards and their index. Raises ModelNotFound, ModelIOError, CorruptModel, InvalidInput (a
    flash model, a part of a folder), or UnsupportedModel, saying what other files are and what to
    do with them.
    """
    try:
        if path.is_dir():
            names = frozenset(entry.name for entry in path.iterdir())
            if CONFIG in names and names & {SINGLE, INDEX}:
                return read_hf(path)
            raise refusal_of_folder(path, names)
        if not path.is_file():
            what = "is neither file nor folder" if path.exists() else "no such file or folder"
            raise ModelNotFound(f"{path}: {what}; expected a GGUF file or a Hugging Face folder")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None
    if refusal := refusal_of_file(path, head):
        raise refusal
    return read_gguf(path)
