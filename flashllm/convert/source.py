"""A checkpoint understood: its config, and where the rows of every role are."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.gguf_blocks import decode
from flashllm.convert.reading import TensorReader
from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.flash.quantize import dequantize
from flashllm.formats.checkpoint import Checkpoint, Tensor
from flashllm.model.config import ModelConfig
from flashllm.model.families import Family, Slice, translate_gguf, translate_hf
from flashllm.model.roles import Shape, roles

MAX_VECTOR = 1 << 16
"""Elements of a vector that a family may read to find its config."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """`count` rows of a tensor from row `first`; of a vector, elements."""

    tensor: Tensor
    first: int
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint, its config, and the rows behind each role, which lie below each other."""

    checkpoint: Checkpoint
    family: Family
    config: ModelConfig
    shapes: dict[str, Shape]
    places: dict[str, tuple[Rows, ...]]

    @property
    def norm_offset(self) -> float:
        """What the checkpoint's norm weights lack."""
        return 0.0 if self.checkpoint.kind == "gguf" else self.family.hf_norm_offset

    @property
    def path(self) -> Path:
        """What the user named."""
        return self.checkpoint.path

    def vectors(self) -> list[str]:
        """The roles of one-dimensional tensors, in the model's order."""
        return [role for role, shape in self.shapes.items() if len(shape) == 1]


def understand(checkpoint: Checkpoint) -> Source:
    """Find family, config and every tensor of a checkpoint.

    Raises UnsupportedModel for another architecture or tensors nobody would read; CorruptModel for
    a tensor that is missing or of another shape than the config says.
    """
    vectors = set()

    def read_vector(name: str) -> NDArray[np.float32]:
        tensor = checkpoint.tensor(name)
        if math.prod(tensor.shape) > MAX_VECTOR:
            raise CorruptModel(f"tensor {name!r} is {tensor.shape}, far too large for what it is")
        vectors.add(name)
        with TensorReader((tensor.file,)) as reader:
            raw = reader.rows(tensor, 0, tensor.rows)
        return dequantize(decode(raw, tensor.dtype)).reshape(-1)

    translate = translate_gguf if checkpoint.kind == "gguf" else translate_hf
    try:
        found = translate(checkpoint.metadata, checkpoint.tensors, read_vector)
    except FlashError as error:
        raise type(error)(f"{checkpoint.path}: {error}") from None
    shapes = roles(found.config)
    places = {}
    for role, shape in shapes.items():
        places[role] = tuple(_rows(checkpoint, piece) for piece in found.slices(role))
        _check(checkpoint, role, shape, places[role])
    read = vectors | {rows.tensor.name for pieces in places.values() for rows in pieces}
    unread = sorted(name for name in set(checkpoint.tensors) - read if not found.ignores(name))
    if unread:
        raise UnsupportedModel(
            f"{checkpoint.path}: tensor {unread[0]!r} is not part of the {found.family.name} "
            f"family as this version runs it ({len(unread)} such tensors)"
        )
    return Source(checkpoint, found.family, found.config, shapes, places)


def _rows(checkpoint: Checkpoint, piece: Slice) -> Rows:
    tensor = checkpoint.tensor(piece.tensor)
    length = tensor.shape[0]
    count = length - piece.first if piece.rows is None else piece.rows
    if not 0 <= piece.first < piece.first + count <= length:
        raise CorruptModel(
            f"{checkpoint.path}: tensor {tensor.name!r} has {length} rows, "
            f"{piece.first + count} expected"
        )
    return Rows(tensor, piece.first, count)


def _check(checkpoint: Checkpoint, role: str, shape: Shape, pieces: tuple[Rows, ...]) -> None:
    """Raise CorruptModel unless pieces make up a tensor of this shape."""
    found = (sum(rows.count for rows in pieces), *pieces[0].tensor.shape[1:])
    widths = {rows.tensor.shape[1:] for rows in pieces}
    flat = len(shape) == 1 and math.prod(found) == shape[0]
    if len(widths) != 1 or (found != shape and not flat):
        raise CorruptModel(
            f"{checkpoint.path}: tensor {pieces[0].tensor.name!r} is {found}, expected {shape} "
            f"for {role}"
        )
