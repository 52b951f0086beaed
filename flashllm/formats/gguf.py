"""GGUF files, whole or split: their headers, checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

from flashllm.errors import CorruptModel, ModelIOError, ModelNotFound
from flashllm.formats.checkpoint import Checkpoint, Tensor
from flashllm.formats.gguf_header import MAX_TENSORS, GGUFHeader, HeaderParser

MAX_PARTS = 1 << 12
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)


def read_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file at `path`, or in all parts of a split one, if it is any part.

    Parts are called name-00001-of-00003.gguf and lie in one folder; the metadata is the first's
    (github.com/ggml-org/llama.cpp, tools/gguf-split). Raises ModelNotFound, ModelIOError,
    CorruptModel or UnsupportedModel.
    """
    header = read_header(path)
    if header.metadata.get("split.count", 1) == 1:
        return Checkpoint(path, "gguf", header.metadata, header.tensors, (path,))
    files = part_files(path, _number(path, header, "split.count"))
    headers = [header if file == path else _read_part(file, path) for file in files]
    tensors: dict[str, Tensor] = {}
    for number, (file, part) in enumerate(zip(files, headers, strict=True)):
        _check_part(file, part, number, len(files))
        if twice := tensors.keys() & part.tensors.keys():
            raise CorruptModel(f"{file}: tensor {min(twice)!r} is in an earlier part as well")
        tensors |= part.tensors
        if len(tensors) > MAX_TENSORS:
            raise CorruptModel(f"{path}: its parts hold more than {MAX_TENSORS} tensors")
    expected = headers[0].metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != expected:
        raise CorruptModel(
            f"{path}: its parts hold {len(tensors)} tensors, the first says {expected!r:.40}; "
            "download all parts again"
        )
    return Checkpoint(path, "gguf", headers[0].metadata, tensors, files)


def read_header(path: Path) -> GGUFHeader:
    """The header of the one GGUF file at `path`. Raises as read_gguf does."""
    with _open(path) as file:
        return HeaderParser(path, file, file.seek(0, 2)).header()


def part_files(path: Path, count: int) -> tuple[Path, ...]:
    """All parts, in order, of the split file of which `path` is one of `count`.

    Raises CorruptModel if its name is not a part's.
    """
    match = _PART.fullmatch(path.name)
    if not match or int(match[3]) != count:
        raise CorruptModel(
            f"{path}: is one of {count} parts, so its name must end in -00001-of-{count:05}.gguf; "
            "give all parts the names they were published under"
        )
    stem, suffix = match[1], match[4]
    return tuple(
        path.with_name(f"{stem}-{i:05}-of-{count:05}{suffix}") for i in range(1, count + 1)
    )


def _read_part(file: Path, named: Path) -> GGUFHeader:
    if not file.is_file():
        raise ModelNotFound(f"{named}: its part {file.name} is missing; download all parts")
    return read_header(file)


def _check_part(file: Path, header: GGUFHeader, number: int, count: int) -> None:
    found = tuple(_number(file, header, key) for key in ("split.no", "split.count"))
    if found != (number, count):
        raise CorruptModel(
            f"{file}: says it is part {found[0] + 1} of {found[1]}, its name that it is "
            f"{number + 1} of {count}; download all parts again"
        )


def _number(path: Path, header: GGUFHeader, key: str) -> int:
    value = header.metadata.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PARTS:
        raise CorruptModel(f"{path}: {key} is {value!r:.40}, expected a number of parts")
    return value


def _open(path: Path) -> BinaryIO:
    """`path` for buffered reading, the buffer sized so that a header takes few reads."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "no such file"
        raise ModelNotFound(f"{path}: {what}; expected a GGUF file")
    try:
        return path.open("rb", buffering=1 << 18)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot open: {error.strerror}", path) from None
