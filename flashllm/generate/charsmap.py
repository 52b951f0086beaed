"""Checks SentencePiece's table of character normalisation before the library walks it unchecked."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel

MAX_BYTES = 8 << 20

_LABEL = np.uint32(0x800000FF)
_HAS_LEAF = np.uint32(1 << 8)
_VALUE = np.uint32(0x7FFFFFFF)


def check_charsmap(data: bytes) -> None:
    """Raise CorruptModel unless every walk through `data` stays within it.

    The table (github.com/google/sentencepiece, src/normalizer.cc) is the length of a trie, the
    trie, and the replacements as texts ended by a zero byte. The trie is a double array (darts.h):
    from unit i, the byte c leads to unit i ^ offset(i) ^ c if that has c as its label.
    """
    if not data:
        return
    size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else 0
    texts = data[4 + size :]
    if len(data) > MAX_BYTES or not size or size % 1024 or not texts.endswith(b"\0"):
        raise CorruptModel("SentencePiece model: its table of characters is damaged")
    units = np.frombuffer(data, "<u4", size // 4, offset=4)
    base = _targets(units, np.zeros(1, np.int64))
    seen = np.zeros(len(units), bool)
    while len(base):
        if base.max() >= len(units):
            raise CorruptModel("SentencePiece model: its table of characters leads out of itself")
        children = base[:, None] ^ np.arange(1, 256)
        reached = children[(units[children] & _LABEL) == np.arange(1, 256, dtype=np.uint32)]
        reached = np.unique(reached[~seen[reached]])
        seen[reached] = True
        base = _targets(units, reached)
        with_leaf = (units[reached] & _HAS_LEAF) != 0
        if with_leaf.any() and base[with_leaf].max() < len(units):
            values = units[base[with_leaf]] & _VALUE
            if values.max() >= len(texts):
                raise CorruptModel("SentencePiece model: its table of characters is cut short")


def _targets(units: NDArray[np.uint32], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] where the walk goes from `nodes` with the byte 0."""
    taken = units[nodes].astype(np.int64)
    targets: NDArray[np.int64] = nodes ^ ((taken >> 10) << ((taken & (1 << 9)) >> 6))
    return targets
