"""What layers read and which neurons fired, token by token: collected on disk, read by layer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.closing import Closing
from flashllm.errors import CorruptModel, EngineError, ModelIOError
from flashllm.flash.layout import ALIGNMENT, ceil_div
from flashllm.flash.output import write_error
from flashllm.flash.quantize import Floats
from flashllm.safetensors_header import read_header

MAX_HEADER = 1 << 20
LARGEST = 65504.0
"""The largest float16: inputs beyond are kept as this."""

Tokens = NDArray[np.int64]
Bits = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Shape:
    """How much is collected: of every layer, an input [hidden] and [neurons] bits a token."""

    layers: int
    tokens: int
    hidden: int
    neurons: int

    @property
    def row_bytes(self) -> int:
        """Bytes of the bits of one token of one layer."""
        return ceil_div(self.neurons, 8)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole, the file's header aside."""
        return self.layers * self.tokens * (2 * self.hidden + self.row_bytes)

    def tensors(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """The tensors of the file, in its order: dtype and shape by name."""
        found: dict[str, tuple[str, tuple[int, int]]] = {}
        for i in range(self.layers):
            found[f"layers.{i}.x"] = ("F16", (self.tokens, self.hidden))
            found[f"layers.{i}.fired"] = ("U8", (self.tokens, self.row_bytes))
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class LayerActivity:
    """One layer: x float16 [tokens, hidden], what its feed-forward read; fired, packed bits.

    fired: uint8 [tokens, ceil(neurons / 8)], as numpy.packbits has them.
    """

    x: NDArray[np.float16]
    fired: NDArray[np.uint8]
    neurons: int

    def inputs(self, tokens: Tokens) -> Floats:
        """What those tokens' feed-forward read: float32 [len(tokens), hidden]."""
        return self.x[tokens].astype(np.float32)

    def firing(self, tokens: Tokens) -> Bits:
        """Which neurons those tokens fired: bool [len(tokens), neurons]."""
        return np.unpackbits(self.fired[tokens], axis=1, count=self.neurons).view(np.bool_)

    def active(self, tokens: Tokens) -> float:
        """The share of neurons that a token fires, in the mean over those tokens."""
        return int(np.bitwise_count(self.fired[tokens]).sum()) / (len(tokens) * self.neurons)


class ActivityFile(Closing):
    """A safetensors file of a fixed shape, filled row by row; used as a context, it is closed.

    Raises DiskFull and ModelIOError.
    """

    def __init__(self, path: Path, shape: Shape):
        """Go on with the file at `path` if it is of this shape, else make it anew, of zeros."""
        self.shape = shape
        self._path = path
        with self._translated():
            if _places(path, shape) is None:
                _create(path, shape)
            self._file = path.open("r+b", buffering=0)
        places = _places(path, shape)
        if places is None:
            raise ModelIOError(f"{path}: changed while it was opened; run it again", path)
        self._places = places

    def write(self, layer: int, first: int, x: Floats, fired: Bits) -> None:
        """Note tokens first .. of a layer: x [tokens, hidden], fired [tokens, neurons].

        Raises EngineError if x holds what is not a number.
        """
        if not np.isfinite(x).all():
            raise EngineError(
                f"layer {layer} reads what is not a number; check the model with `flashllm verify`"
            )
        inputs = np.clip(x, -LARGEST, LARGEST).astype(np.float16)
        with self._translated():
            self._put(f"layers.{layer}.x", first, inputs.view(np.uint8))
            self._put(f"layers.{layer}.fired", first, np.packbits(fired, axis=1))

    def sync(self) -> None:
        """Have the disk hold what was written."""
        with self._translated():
            os.fsync(self._file.fileno())

    def layer(self, layer: int) -> LayerActivity:
        """All that was noted of a layer, read into memory."""
        s = self.shape
        x = self._read(f"layers.{layer}.x").view(np.float16).reshape(s.tokens, s.hidden)
        fired = self._read(f"layers.{layer}.fired").reshape(s.tokens, s.row_bytes)
        return LayerActivity(x, fired, s.neurons)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _put(self, name: str, first: int, rows: NDArray[np.uint8]) -> None:
        self._file.seek(self._places[name] + first * rows.shape[1])
        view = np.ascontiguousarray(rows).reshape(-1).data
        while view:
            view = view[self._file.write(view) :]

    def _read(self, name: str) -> NDArray[np.uint8]:
        s = self.shape
        width = 2 * s.hidden if name.endswith(".x") else s.row_bytes
        out = np.empty(s.tokens * width, np.uint8)
        view, done = out.data, 0
        with self._translated():
            self._file.seek(self._places[name])
            while done < len(out):
                count = self._file.readinto(view[done:])
                if not count:
                    raise ModelIOError(f"{self._path}: has become shorter; use --restart")
                done += count
        return out

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise write_error(self._path, error) from None


class Recorder:
    """Notes in an ActivityFile what a decoder computes: the callback of Decoder.observe.

    A feed-forward's neurons come in pieces, from the first to the last, for the same tokens.
    """

    def __init__(self, file: ActivityFile):
        self._file = file
        self._next: Sequence[int] = ()
        self._fired = np.zeros((0, file.shape.neurons), np.bool_)

    def begin(self, token: int) -> None:
        """The next thing that every layer computes is this token."""
        self._next = [token] * self._file.shape.layers

    def __call__(self, layer: int, first: int, x: Floats, hidden: Floats) -> None:
        """x float32 [tokens, hidden size]; hidden [tokens, n], of neurons first .. first+n-1.

        A neuron fires where it is not 0.
        """
        if len(self._fired) != len(x):
            self._fired = np.zeros((len(x), self._file.shape.neurons), np.bool_)
        end = min(first + hidden.shape[1], self._file.shape.neurons)
        np.not_equal(hidden[:, : end - first], 0, out=self._fired[:, first:end])
        if end == self._file.shape.neurons:
            at = list(self._next)
            self._file.write(layer, at[layer], x, self._fired)
            at[layer] += len(x)
            self._next = at


def _places(path: Path, shape: Shape) -> dict[str, int] | None:
    """Where each tensor of the file begins; None if there is no such file of that shape."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            found = read_header(file, path, path.stat().st_size, MAX_HEADER)
    except CorruptModel:
        return None
    if {name: (place.dtype, place.shape) for name, place in found.items()} != shape.tensors():
        return None
    return {name: place.offset for name, place in found.items()}


def _create(path: Path, shape: Shape) -> None:
    """A file of zeros, whose space is taken only as it is written."""
    header: dict[str, Any] = {}
    end = 0
    for name, (dtype, (rows, cols)) in shape.tensors().items():
        begin, end = end, end + rows * cols * (2 if dtype == "F16" else 1)
        header[name] = {"dtype": dtype, "shape": [rows, cols], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
