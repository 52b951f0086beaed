"""The container of units: safetensors headers, written aligned, read without trust.

Layout: github.com/huggingface/safetensors, README: a 64-bit length, JSON padded with spaces, then
the tensors, which cover the rest of the file without holes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flashllm.errors import CorruptModel
from flashllm.flash.documents import MAX_JSON, parse_object
from flashllm.flash.layout import ALIGNMENT

ITEM_BYTES = {"U8": 1, "I64": 8, "U64": 8}


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """A tensor of a container: dtype as safetensors spells it, shape, absolute byte offset."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def build_header(tensors: Sequence[tuple[str, str, int]]) -> bytes:
    """The header of one-dimensional tensors (name, dtype, elements), in file order.

    Its length is a multiple of 4096, so that data begins on a 4 KiB offset.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "flashllm-units", "version": "1"}}
    end = 0
    for name, dtype, count in tensors:
        begin, end = end, end + count * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_header(file: BinaryIO, path: Path, size: int) -> dict[str, TensorPlace]:
    """Where the tensors of an open container of `size` bytes lie, by name.

    Raises CorruptModel unless they follow each other and end with the file.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(MAX_JSON, size - 8):
        raise CorruptModel(f"{path}: claims a header of {length} bytes; the file is damaged")
    entries = parse_object(file.read(length), f"{path}: header")
    entries.pop("__metadata__", None)
    places: dict[str, TensorPlace] = {}
    end = start = 8 + length
    for name, begin, stop, place in sorted(_extents(entries, path), key=lambda e: e[1:3]):
        place = dataclasses.replace(place, offset=start + begin)
        if place.offset != end or stop - begin != place.nbytes or not place.shape:
            raise CorruptModel(
                f"{path}: tensor {name!r} overlaps, leaves a hole or lies about size"
            )
        places[name] = place
        end += place.nbytes
    if end != size:
        raise CorruptModel(
            f"{path}: {size} bytes long, its header describes {end}; is it truncated?"
        )
    return places


def _extents(entries: dict[str, Any], path: Path) -> list[tuple[str, int, int, TensorPlace]]:
    """Name, begin, end and place (its offset still zero) of each tensor."""
    extents = []
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise CorruptModel(f"{path}: tensor {name!r} is not described by an object")
        dtype = entry.get("dtype")
        shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES or len(offsets) != 2:
            raise CorruptModel(f"{path}: tensor {name!r} has no valid dtype, shape and offsets")
        extents.append((name, offsets[0], offsets[1], TensorPlace(dtype, shape, 0)))
    return extents


def _counts(value: Any) -> tuple[int, ...]:
    """`value` if it is a list of one or two integers from 0 to 2**62, else nothing."""
    if not isinstance(value, list) or not 1 <= len(value) <= 2:
        return ()
    if not all(type(item) is int and 0 <= item <= 1 << 62 for item in value):
        return ()
    return tuple(value)
