"""Keys and values of one sequence: all layers in two arrays, rolled back by forgetting its tail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, InvalidInput
from flashllm.kernels.memory import growing_buffer
from flashllm.kernels.weights import q8_keys, q8_values

BLOCK = 16
"""Positions whose keys lie side by side: a lane of a kernel's vector is a position."""


class SavedArray(Protocol):
    """An array, or what has its shape and dtype and gives one part after another, as it does."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Sequence:
    """A conversation's keys and values for up to n_ctx tokens; `length` of them are valid.

    dtype: float16, float32, or int8 for q8; KVRows says how each lies in memory.
    Memory is reserved for n_ctx tokens at once and used by the system only as it fills.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, n_ctx: int, dtype: np.dtype[Any]):
        if n_ctx < 1:
            raise InvalidInput(f"a context of {n_ctx} tokens; at least 1 is needed")
        blocks = -(-n_ctx // BLOCK)
        self.n_ctx = n_ctx
        self.length = 0
        if dtype == np.int8:
            self._keys = _array((layers, kv_heads, blocks), q8_keys(head_dim))
            self._values = _array((layers, kv_heads, blocks), q8_values(head_dim))
        else:
            self._keys = _array((layers, kv_heads, blocks, head_dim, BLOCK), dtype)
            self._values = _array((layers, kv_heads, blocks * BLOCK, head_dim), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of a full context."""
        return self._keys.nbytes + self._values.nbytes

    def addresses(self) -> tuple[int, int, int]:
        """A row of KVRows.table: keys, values, bytes of one head of one layer."""
        head_bytes = self._keys[0, 0].nbytes
        return self._keys.ctypes.data, self._values.ctypes.data, head_bytes

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on. Raises InvalidInput if there are fewer."""
        if not 0 <= length <= self.length:
            raise InvalidInput(f"cannot keep {length} tokens of a sequence of {self.length}")
        self.length = length

    def export(self) -> dict[str, NDArray[Any]]:
        """The valid part, as arrays to save: keys, values and the length; of q8 whole blocks, as
        uint8 [layers, kv_heads, bytes]. They are views, right until the sequence changes.
        """
        keys, values = self._valid(self.length)
        if keys.dtype.names:
            keys, values = keys.view(np.uint8), values.view(np.uint8)
        return {"keys": keys, "values": values, "length": np.array([self.length], np.int64)}

    def restore(self, saved: Mapping[str, SavedArray]) -> None:
        """Take over what export() gave, layer by layer. Raises CorruptModel, and is empty, unless
        every shape and number fits.
        """
        self.length = 0
        length = _saved_length(saved, self.n_ctx)
        for name, target in zip(("keys", "values"), self._valid(length), strict=True):
            source = saved.get(name)
            shape, dtype = target.shape, target.dtype
            if in_blocks := bool(dtype.names):
                shape = (*shape[:2], shape[2] * dtype.itemsize)
                dtype = np.dtype(np.uint8)
            if source is None or source.shape != shape or source.dtype != dtype:
                found = "nothing" if source is None else f"{source.dtype}{list(source.shape)}"
                raise CorruptModel(
                    f"saved {name}: {found}, expected {dtype}{list(shape)}; "
                    "was it saved with another model?"
                )
            for layer, values in zip(target, source, strict=True):
                if in_blocks:
                    values = np.ascontiguousarray(values).view(target.dtype)
                if not np.isfinite(values["scales"] if in_blocks else values).all():
                    raise CorruptModel(f"saved {name} hold numbers that are not finite")
                layer[:] = values
        self.length = length

    def _valid(self, length: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The part of keys and values, in whole blocks where they lie so, with `length` tokens."""
        blocks = -(-length // BLOCK)
        count = blocks if self._values.dtype.names else length
        return self._keys[:, :, :blocks], self._values[:, :, :count]

    def close(self) -> None:
        """Give the memory back; the sequence can no longer be used."""
        self.length = 0
        self._keys = self._keys[:0].copy()
        self._values = self._values[:0].copy()


def _array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    return growing_buffer(int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


def _saved_length(saved: Mapping[str, SavedArray], n_ctx: int) -> int:
    stored = saved.get("length")
    if stored is None or stored.shape != (1,) or stored.dtype != np.int64:
        raise CorruptModel("the saved sequence lacks its length")
    length = int(next(iter(stored)))
    if not 0 <= length <= n_ctx:
        raise CorruptModel(f"the saved sequence has {length} tokens; the context holds {n_ctx}")
    return length
