"""Codec `bitmap`: tiles of pruned matrices as a bit for each weight, and those that are not zero.

Endor (arXiv 2406.11674) stores pruned weights so, to read less; docs/format.md draws the bytes. A
unit says of each panel where its values are, and nothing of its tiles: kernels count bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.layout import BITMAP_SCALE_BYTES, tile_bytes
from flashllm.flash.parts import Part, Runs

Bytes = NDArray[np.uint8]
Check = Callable[[Bytes, Sequence[Runs]], bool]
"""What is_sound is: the kernels have one that does the same, many times sooner."""

_ZERO = {"q8": 128, "q4": 8}
"""The code of a weight that is 0; of floats, whose sign does not matter, it is 0."""


def squeeze_unit(unit: Bytes, part: Part, index: int) -> Bytes:
    """Unit `index` of a part in codec `bitmap`, from what it is in codec `tile`: uint8 both.

    Weights are kept to the bit, but -0, which masks leave in pruned floats, becomes 0.
    """
    runs = part.runs(index)
    heads, bodies = [], []
    begin = 0
    for one in runs:
        end = begin + one.panels * one.tiles * tile_bytes(one.dtype)
        words, values = _squeeze(unit[begin:end].reshape(one.panels, one.tiles, -1), one.dtype)
        heads.append(words)
        bodies += values
        begin = end
    _place(heads, bodies)
    return np.concatenate([*(words.view(np.uint8).reshape(-1) for words in heads), *bodies])


def is_sound(unit: Bytes, runs: Sequence[Runs]) -> bool:
    """Whether kernels may have a unit: its places follow one another, as the bits say, to its end.

    unit: uint8 [its length]. Nothing else in a unit of codec `bitmap` could lead a kernel astray.
    """
    at, end = 0, sum(_head_bytes(one) for one in runs)
    if len(unit) < end:
        return False
    for one in runs:
        heads = unit[at : at + _head_bytes(one)].view(np.uint64).reshape(one.panels, -1)
        nbytes = _value_bytes(np.bitwise_count(heads[:, 1:]), one)
        ends = end + np.cumsum(nbytes)
        begins = at + heads.itemsize * heads.shape[1] * np.arange(one.panels)
        if not np.array_equal(heads[:, 0].astype(np.int64) + begins, ends - nbytes):
            return False
        at += _head_bytes(one)
        end = int(ends[-1])
    return end == len(unit)


def _head_bytes(runs: Runs) -> int:
    return runs.panels * (8 + 64 * runs.tiles)


def _value_bytes(counts: NDArray[np.uint8], runs: Runs) -> NDArray[np.int64]:
    """Bytes of the scales and values of each panel; counts uint8 [panels, words], of set bits."""
    if runs.dtype == "q4":  # a byte has a nibble of a word, and one of the word 4 behind it
        counts = counts.reshape(runs.panels, runs.tiles, 2, 4).max(axis=2).reshape(runs.panels, -1)
    total: NDArray[np.int64] = counts.sum(axis=1, dtype=np.int64)
    if runs.dtype in ("f16", "bf16"):
        total *= 2
    return total + BITMAP_SCALE_BYTES[runs.dtype] * runs.tiles


def _squeeze(tiles: Bytes, dtype: str) -> tuple[NDArray[np.uint64], list[Bytes]]:
    """Panels of tiles, uint8 [panels, tiles, bytes], as words, uint64 [panels, 1 + 8 * tiles], the
    first of each to be set, and the values of each panel.
    """
    panels, count = tiles.shape[:2]
    codes, scales = _codes(tiles, dtype)
    there = codes & 0x7FFF != 0 if dtype in ("f16", "bf16") else codes != _ZERO[dtype]
    words = np.zeros((panels, 1 + 8 * count), np.uint64)
    bits = np.packbits(there.reshape(panels, -1), axis=1, bitorder="little")
    words[:, 1:] = bits.view(np.uint64)
    counts = np.bitwise_count(words[:, 1:])
    packed = _paired(codes, there, counts) if dtype == "q4" else codes[there].view(np.uint8)
    scale_bytes = scales.size // panels
    ends = np.cumsum(_value_bytes(counts, Runs(dtype, panels, count)) - scale_bytes)
    pieces = np.split(packed, ends[:-1])
    return words, [np.concatenate([s, p]) for s, p in zip(scales, pieces, strict=True)]


def _codes(tiles: Bytes, dtype: str) -> tuple[NDArray[Any], Bytes]:
    """The codes of panels of tiles, [panels, words, 64], and their scales, uint8 [panels, n]."""
    panels, count, nbytes = tiles.shape
    if dtype in ("f16", "bf16"):
        words = np.ascontiguousarray(tiles).view(np.uint16).reshape(panels, 8 * count, 64)
        return words, np.empty((panels, 0), np.uint8)
    end = nbytes - BITMAP_SCALE_BYTES[dtype]
    codes, scales = tiles[:, :, :end], tiles[:, :, end:].reshape(panels, -1)
    if dtype == "q4":
        halves = codes.reshape(panels, count, 1, -1)
        codes = np.concatenate([halves & 15, halves >> 4], axis=2)
    return codes.reshape(panels, 8 * count, 64), scales


def _paired(codes: Bytes, there: NDArray[np.bool_], counts: NDArray[np.uint8]) -> Bytes:
    """The nibbles of words j and j + 4 of each tile, side by side in bytes: as many as the longer
    of the two has.
    """
    pairs = codes.reshape(-1, 2, 4, 64)
    lengths = counts.reshape(-1, 2, 4).astype(np.int64)
    ends = np.cumsum(lengths.max(axis=1).reshape(-1)).reshape(-1, 4)
    begins = ends - lengths.max(axis=1)
    packed = np.zeros(int(ends[-1, -1]), np.uint8)
    kept = there.reshape(pairs.shape)
    for half in (0, 1):
        places = begins[..., None] + np.cumsum(kept[:, half], axis=-1) - 1
        packed[places[kept[:, half]]] |= pairs[:, half][kept[:, half]] << 4 * half
    return packed


def _place(heads: Sequence[NDArray[np.uint64]], bodies: Sequence[Bytes]) -> None:
    """Have each panel say how far its values are from where it begins."""
    at, end = 0, sum(words.nbytes for words in heads)
    rest = iter(bodies)
    for words in heads:
        for panel in words:
            panel[0] = end - at
            at += panel.nbytes
            end += len(next(rest))
