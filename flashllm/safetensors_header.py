"""The header of a safetensors file, parsed without trust.

Layout: github.com/huggingface/safetensors, README: a 64-bit length, JSON padded with spaces, then
the tensors, which cover the rest of the file without holes.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, BinaryIO

from flashllm.documents import parse_object
from flashllm.errors import CorruptModel

MAX_HEADER = 100_000_000  # bytes, as the public library has it
MAX_TENSORS = 1 << 17
MAX_DIMS = 8

_BY_BITS = {
    4: ("F4",),
    6: ("F6_E2M3", "F6_E3M2"),
    8: ("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
    16: ("F16", "BF16", "I16", "U16"),
    32: ("F32", "I32", "U32"),
    64: ("F64", "C64", "I64", "U64"),
}
BITS = {name: bits for bits, names in _BY_BITS.items() for name in names}
"""Bits of an element of each dtype (the library's tensor.rs, enum Dtype)."""


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """A tensor of a file: dtype as safetensors spells it, shape, absolute byte offset, bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(
    file: BinaryIO, path: Path, size: int, limit: int = MAX_HEADER
) -> dict[str, TensorPlace]:
    """Where the tensors of an open file of `size` bytes lie, by name, in the order of the file.

    Raises CorruptModel unless the header has at most `limit` bytes and the tensors follow each
    other and end with the file.
    """
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(limit, size - 8):
        raise CorruptModel(f"{path}: claims a header of {length} bytes; the file is damaged")
    entries = parse_object(file.read(length), f"{path}: header", limit, 12 * MAX_TENSORS)
    entries.pop("__metadata__", None)
    places: dict[str, TensorPlace] = {}
    start = end = 8 + length
    extents = [_extent(name, entry, path) for name, entry in entries.items()]
    for begin, stop, name, dtype, shape in sorted(extents, key=lambda extent: extent[:2]):
        bits = math.prod(shape) * BITS[dtype]
        if start + begin != end or (stop - begin) * 8 != bits:
            raise CorruptModel(
                f"{path}: tensor {name!r} overlaps, leaves a hole or lies about size"
            )
        places[name] = TensorPlace(dtype, shape, end, stop - begin)
        end = start + stop
    if end != size:
        raise CorruptModel(
            f"{path}: {size} bytes long, its header describes {end}; is it truncated?"
        )
    return places


def _extent(name: str, entry: Any, path: Path) -> tuple[int, int, str, str, tuple[int, ...]]:
    """Begin, end (within the data), name, dtype and shape of a tensor."""
    if not isinstance(entry, dict):
        raise CorruptModel(f"{path}: tensor {name!r} is not described by an object")
    dtype = entry.get("dtype")
    shape, offsets = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CorruptModel(f"{path}: tensor {name!r} has the unknown dtype {dtype!r:.40}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise CorruptModel(f"{path}: tensor {name!r} has no valid shape and offsets")
    return offsets[0], offsets[1], name, dtype, shape


def _counts(value: Any) -> tuple[int, ...] | None:
    """`value` if it is a list of a few integers from 0 to 2**62."""
    if not isinstance(value, list) or len(value) > MAX_DIMS:
        return None
    if not all(type(item) is int and 0 <= item <= 1 << 62 for item in value):
        return None
    return tuple(value)
