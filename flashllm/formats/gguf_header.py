"""The header of a GGUF file, parsed without trust.

Every count, length, offset and product is checked against the limits below and against the true
size of the file before anything is allocated for it. Layout: github.com/ggml-org/ggml,
docs/gguf.md; versions 2 and 3, little endian.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flashllm.errors import CorruptModel, ModelIOError, UnsupportedModel
from flashllm.formats.checkpoint import Tensor
from flashllm.formats.ggml_types import ggml_type

MAX_HEADER = 64 << 20
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_ELEMENTS = 1 << 21  # of all metadata arrays together; the largest vocabularies need 1.3 million
MAX_STRING = 16 << 20
MAX_NAME = 256
MAX_DIMS = 4
ALIGNMENTS = frozenset(1 << n for n in range(3, 17))

ARRAY, STRING, BOOL = 9, 8, 7
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """Everything before the weights. Metadata values are int, float, bool, str or lists of one."""

    version: int
    metadata: dict[str, object]
    tensors: dict[str, Tensor]
    data_offset: int
    alignment: int


class HeaderParser:
    """Reads a header in file order; `position` is the next byte, `elements` of arrays so far."""

    def __init__(self, path: Path, file: BinaryIO, size: int):
        self.path = path
        self.file = file
        self.size = size
        self.position = 0
        self.elements = 0

    def header(self) -> GGUFHeader:
        """The whole header. Raises CorruptModel, UnsupportedModel or ModelIOError."""
        self.file.seek(0)
        version = self._version()
        n_tensors = self._count("tensors", MAX_TENSORS, smallest=24)
        n_keys = self._count("metadata keys", MAX_KEYS, smallest=13)
        metadata = self._metadata(n_keys)
        alignment = self._alignment(metadata)
        entries = [self._tensor_entry() for _ in range(n_tensors)]
        data_offset = -(-self.position // alignment) * alignment
        tensors = self._place(entries, data_offset, alignment)
        return GGUFHeader(version, metadata, tensors, data_offset, alignment)

    def _version(self) -> int:
        magic = self._take(4)
        if magic == b"FUGG":
            raise UnsupportedModel(f"{self.path}: big-endian GGUF is not supported")
        if magic != b"GGUF":
            raise CorruptModel(f"{self.path}: not a GGUF file (it begins with {magic!r})")
        (version,) = self._unpack("I")
        if version & 0xFFFF == 0:
            raise UnsupportedModel(f"{self.path}: big-endian GGUF is not supported")
        if version not in (2, 3):
            raise UnsupportedModel(
                f"{self.path}: GGUF version {version}; versions 2 and 3 are read"
            )
        return int(version)

    def _metadata(self, count: int) -> dict[str, object]:
        metadata: dict[str, object] = {}
        for _ in range(count):
            key = self._string(MAX_STRING)
            if key in metadata:
                raise self._lie(f"the metadata key {key[:80]!r} appears twice")
            (kind,) = self._unpack("I")
            metadata[key] = self._array(key) if kind == ARRAY else self._value(kind, key)
        return metadata

    def _value(self, kind: int, key: str) -> object:
        if kind == STRING:
            return self._string(MAX_STRING)
        return self._numbers(kind, 1, key)[0]

    def _array(self, key: str) -> list[object]:
        kind, count = self._unpack("IQ")
        if kind == ARRAY:
            raise UnsupportedModel(f"{self.path}: {key[:80]!r} is an array of arrays")
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise self._lie(
                f"the array {key[:80]!r} claims {count} values, more than any model has"
            )
        if kind == STRING:
            self._require(8 * count)
            return [self._string(MAX_STRING) for _ in range(count)]
        return self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> list[object]:
        if kind not in SCALARS:
            raise self._lie(f"{key[:80]!r} has the unknown value type {kind}")
        dtype = np.dtype(f"<{SCALARS[kind]}" if kind != BOOL else "u1")
        numbers = np.frombuffer(self._take(count * dtype.itemsize), dtype)
        if kind != BOOL:
            return list(numbers.tolist())
        if count and numbers.max() > 1:
            raise self._lie(f"{key[:80]!r} is a truth value of {numbers.max()}")
        return list((numbers == 1).tolist())

    def _alignment(self, metadata: dict[str, object]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
            raise self._lie(
                f"general.alignment is {str(alignment)[:80]}, not a power of two in 8..65536"
            )
        return alignment

    def _tensor_entry(self) -> Tensor:
        """A tensor as the file lists it: offset still relative to the data section."""
        name = self._string(MAX_NAME)
        (n_dims,) = self._unpack("I")
        if not 1 <= n_dims <= MAX_DIMS:
            raise self._lie(f"tensor {name!r} has {n_dims} dimensions, expected 1 to {MAX_DIMS}")
        dims = self._unpack(f"{n_dims}Q")
        number, offset = self._unpack("IQ")
        kind = ggml_type(number, f"{self.path}: tensor {name!r}")
        if dims[0] % kind.block or 0 in dims:
            raise self._lie(f"tensor {name!r} of type {kind.name} has the impossible shape {dims}")
        nbytes = math.prod(dims) // kind.block * kind.nbytes
        if nbytes > self.size:
            raise self._lie(f"tensor {name!r} claims {nbytes} bytes of a file of {self.size}")
        return Tensor(name, dims[::-1], kind.name, self.path, offset, nbytes)

    def _place(self, entries: list[Tensor], data_offset: int, alignment: int) -> dict[str, Tensor]:
        """Absolute offsets, once no tensor overlaps another or leaves the file."""
        tensors: dict[str, Tensor] = {}
        for entry in entries:
            if entry.name in tensors:
                raise self._lie(f"tensor {entry.name!r} appears twice")
            if entry.offset % alignment:
                raise self._lie(f"tensor {entry.name!r} is not aligned to {alignment} bytes")
            tensors[entry.name] = dataclasses.replace(entry, offset=data_offset + entry.offset)
        end = data_offset
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._lie(f"tensor {tensor.name!r} overlaps its neighbour")
            end = tensor.offset + tensor.nbytes
            if end > self.size:
                raise self._lie(
                    f"tensor {tensor.name!r} ends at byte {end} of a file of {self.size} bytes"
                )
        return tensors

    def _count(self, what: str, limit: int, smallest: int) -> int:
        (count,) = self._unpack("Q")
        if count > limit or count * smallest > self.size:
            raise self._lie(f"the header claims {count} {what}")
        return int(count)

    def _string(self, limit: int) -> str:
        (length,) = self._unpack("Q")
        if length > limit:
            raise self._lie(f"a string at byte {self.position} claims {length} bytes")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            raise self._lie(f"the string ending at byte {self.position} is not UTF-8") from None

    def _unpack(self, layout: str) -> tuple[int, ...]:
        layout = "<" + layout
        return struct.unpack(layout, self._take(struct.calcsize(layout)))

    def _require(self, count: int) -> None:
        if self.position + count > MAX_HEADER:
            raise self._lie(f"the header is larger than {MAX_HEADER >> 20} MiB")
        if self.position + count > self.size:
            raise self._lie(f"the file of {self.size} bytes ends inside its header")

    def _take(self, count: int) -> bytes:
        self._require(count)
        try:
            data = self.file.read(count)
        except OSError as error:
            message = f"{self.path}: cannot read at byte {self.position}: {error.strerror}"
            raise ModelIOError(message, self.path, self.position) from None
        if len(data) < count:
            raise self._lie("the file shrank while its header was read")
        self.position += count
        return data

    def _lie(self, what: str) -> CorruptModel:
        return CorruptModel(f"{self.path}: {what}; the file is damaged, download it again")
