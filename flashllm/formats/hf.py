"""Hugging Face folders: config.json beside safetensors, one file or shards with an index."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, BinaryIO

from flashllm.documents import MAX_JSON, parse_object
from flashllm.errors import CorruptModel, ModelIOError, ModelNotFound, UnsupportedModel
from flashllm.formats.checkpoint import Checkpoint, Tensor
from flashllm.safetensors_header import MAX_TENSORS, TensorPlace, read_header

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_INDEX = 64 << 20
LFS_POINTER = b"version https://git-lfs"
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,240}\.safetensors")


def read_hf(folder: Path) -> Checkpoint:
    """The checkpoint in a folder of config.json and safetensors files.

    model.safetensors comes first, as in Hugging Face's own library; else the shards that
    model.safetensors.index.json names, which must hold exactly the tensors it says they hold.
    Files may be links to elsewhere, as in Hugging Face's cache. A scalar has the shape (1,).

    Raises ModelNotFound, ModelIOError, CorruptModel or UnsupportedModel.
    """
    metadata = read_json(folder / CONFIG)
    if (folder / SINGLE).is_file():
        tensors = _read_shard(folder / SINGLE)
        return Checkpoint(folder, "safetensors", metadata, tensors, (folder / SINGLE,))
    weight_map = _read_index(folder / INDEX)
    files = tuple(folder / name for name in sorted(set(weight_map.values())))
    tensors = {}
    for file in files:
        found = _read_shard(file)
        listed = {name for name, shard in weight_map.items() if shard == file.name}
        if differing := sorted(listed ^ set(found)):
            where = "is not in it" if differing[0] in listed else "is in it all the same"
            says = "puts" if differing[0] in listed else "does not put"
            raise CorruptModel(
                f"{file}: {INDEX} {says} tensor {differing[0]!r} there, but it {where} "
                f"({len(differing)} such tensors); download the model again"
            )
        tensors |= found
    return Checkpoint(folder, "safetensors", metadata, tensors, files)


def read_json(path: Path, limit: int = MAX_JSON) -> dict[str, Any]:
    """The JSON object in the file `path`. Raises ModelNotFound, ModelIOError or CorruptModel."""
    with _open(path) as file:
        return parse_object(_read(file, path, limit + 1), str(path), limit)


def _read_index(path: Path) -> dict[str, str]:
    """The index's weight_map: tensor to file name, a plain name."""
    weight_map = read_json(path, MAX_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not 0 < len(weight_map) <= MAX_TENSORS:
        raise CorruptModel(f"{path}: has no sensible 'weight_map'; download the model again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CorruptModel(
                f"{path}: tensor {name!r} is said to be in {shard!r:.80}, which is not the name of "
                "a safetensors file in the model's folder"
            )
    return weight_map


def _read_shard(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file."""
    with _open(path) as file:
        if _read(file, path, len(LFS_POINTER)) == LFS_POINTER:
            raise CorruptModel(
                f"{path}: is a Git LFS pointer, not the weights; run `git lfs pull` in its folder"
            )
        try:
            file.seek(0)
            places = read_header(file, path, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
    return {name: _tensor(name, place, path) for name, place in places.items()}


def _tensor(name: str, place: TensorPlace, path: Path) -> Tensor:
    if not place.nbytes:
        raise UnsupportedModel(f"{path}: tensor {name!r} of shape {place.shape} is empty")
    return Tensor(name, place.shape or (1,), place.dtype, path, place.offset, place.nbytes)


def _open(path: Path) -> BinaryIO:
    if not path.is_file():
        raise ModelNotFound(f"{path}: is missing; download the model again, with all its files")
    try:
        return path.open("rb")
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None


def _read(file: BinaryIO, path: Path, count: int) -> bytes:
    try:
        return file.read(count)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
