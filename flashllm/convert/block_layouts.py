"""GGUF's blocks of weights, taken apart into codes, scales and minimums without loss.

The layouts are those of github.com/ggml-org/llama.cpp, ggml-common.h and ggml-quants.c.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Weights codes * scales + minimums, in groups that share a scale.

    codes: int8 or uint8 [rows, blocks, groups of a block, weights of a group]; scales and
    minimums (None: zero): float32 [rows, blocks, groups of a block].
    """

    codes: NDArray[Any]
    scales: Floats
    minimums: Floats | None = None


def take_apart(raw: Bytes, dtype: str) -> Groups:
    """Rows of a tensor of blocks, uint8 [rows, bytes of a row]."""
    nbytes, decoder = _LAYOUTS[dtype]
    with np.errstate(over="ignore", invalid="ignore"):  # of damaged scales; weights are checked
        return decoder(raw.reshape(len(raw), -1, nbytes))


# ------------------------------------------------------- blocks of 32 weights: [rows, blocks, size]


def _q8_0(blocks: Bytes) -> Groups:
    return Groups(blocks[:, :, None, 2:].view(np.int8), _halves(blocks, 0))


def _q4_0(blocks: Bytes) -> Groups:
    return Groups(_signed(_fields(blocks[:, :, 2:], 16, 4), 8, 32), _halves(blocks, 0))


def _q4_1(blocks: Bytes) -> Groups:
    codes = _grouped(_fields(blocks[:, :, 4:], 16, 4), 32)
    return Groups(codes, _halves(blocks, 0), _halves(blocks, 2))


def _q5_0(blocks: Bytes) -> Groups:
    codes = _fifth_bit(blocks[:, :, 2:6]) | _grouped(_fields(blocks[:, :, 6:], 16, 4), 32)
    return Groups(_signed(codes, 16, 32), _halves(blocks, 0))


def _q5_1(blocks: Bytes) -> Groups:
    codes = _fifth_bit(blocks[:, :, 4:8]) | _grouped(_fields(blocks[:, :, 8:], 16, 4), 32)
    return Groups(codes, _halves(blocks, 0), _halves(blocks, 2))


def _iq4_nl(blocks: Bytes) -> Groups:
    codes = _grouped(_fields(blocks[:, :, 2:], 16, 4), 32)
    return Groups(_IQ4_VALUES[codes], _halves(blocks, 0))


def _mxfp4(blocks: Bytes) -> Groups:
    codes = _grouped(_fields(blocks[:, :, 1:], 16, 4), 32)
    return Groups(_E2M1_DOUBLED[codes], _E8M0_HALVED[blocks[:, :, :1]])


_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
"""The levels of IQ4_NL and IQ4_XS."""

# OCP Microscaling Formats 1.0: E2M1 elements, here doubled, times a power of two, here halved.
_E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
_E8M0_HALVED = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


# ------------------------------------------------------ blocks of 256 weights: [rows, blocks, size]


def _q2_k(blocks: Bytes) -> Groups:
    scales, codes = blocks[:, :, :16], _grouped(_fields(blocks[:, :, 16:80], 32, 2), 16)
    minimums = -(_halves(blocks, 82) * (scales >> 4).astype(np.float32))
    return Groups(codes, _halves(blocks, 80) * (scales & 15).astype(np.float32), minimums)


def _q3_k(blocks: Bytes) -> Groups:
    high = _fields(blocks[:, :, :32], 32, 1) << 2  # where it is not set, 4 is taken off
    low = _fields(blocks[:, :, 32:96], 32, 2)
    codes = _signed(_grouped(low, 16) | _grouped(high, 16), 4, 16)
    packed = blocks[:, :, 96:108]
    nibbles = _fields(packed[:, :, :8], 8, 4).reshape(*packed.shape[:2], 16)
    pairs = _fields(packed[:, :, 8:], 4, 2).reshape(*packed.shape[:2], 16)
    scales = (nibbles | pairs << 4).astype(np.float32) - np.float32(32)
    return Groups(codes, _halves(blocks, 108) * scales)


def _q4_k(blocks: Bytes) -> Groups:
    return Groups(_grouped(_fields(blocks[:, :, 16:], 32, 4), 32), *_scales_and_minimums(blocks))


def _q5_k(blocks: Bytes) -> Groups:
    high = _grouped(_fields(blocks[:, :, 16:48], 32, 1), 32) << 4
    codes = high | _grouped(_fields(blocks[:, :, 48:], 32, 4), 32)
    return Groups(codes, *_scales_and_minimums(blocks))


def _q6_k(blocks: Bytes) -> Groups:
    low = _grouped(_fields(blocks[:, :, :128], 64, 4), 16)
    high = _grouped(_fields(blocks[:, :, 128:192], 32, 2), 16)
    scales = blocks[:, :, 192:208].view(np.int8).astype(np.float32)
    return Groups(_signed(low | high << 4, 32, 16), _halves(blocks, 208) * scales)


def _q8_k(blocks: Bytes) -> Groups:
    codes = blocks[:, :, None, 4:260].view(np.int8)
    return Groups(codes, np.ascontiguousarray(blocks[:, :, :4]).view("<f4"))


def _iq4_xs(blocks: Bytes) -> Groups:
    low = _pairs(blocks[:, :, 4:8], 4)
    high = _pairs(blocks[:, :, 2:4], 2)
    scales = (low | high << 4).astype(np.float32) - np.float32(32)
    codes = _IQ4_VALUES[_grouped(_fields(blocks[:, :, 8:], 16, 4), 32)]
    return Groups(codes, _halves(blocks, 0) * scales)


_LAYOUTS: dict[str, tuple[int, Callable[[Bytes], Groups]]] = {
    "Q8_0": (34, _q8_0),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "IQ4_NL": (18, _iq4_nl),
    "MXFP4": (17, _mxfp4),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "Q8_K": (292, _q8_k),
    "IQ4_XS": (136, _iq4_xs),
}
"""Bytes of a block of each type, and what takes it apart."""


# ------------------------------------------------------------------------------ bits within a block


def _fields(packed: Bytes, width: int, bits: int) -> Bytes:
    """Each run of `width` bytes as 8 / bits runs of fields, the low bits' first.

    uint8 [rows, blocks, bytes] to [rows, blocks, runs, 8 / bits, width].
    """
    runs = packed.reshape(*packed.shape[:2], -1, 1, width)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields = runs >> shifts
    fields &= np.uint8((1 << bits) - 1)
    return fields


def _pairs(packed: Bytes, bits: int) -> Bytes:
    """All fields of all bytes, one after another, the low bits first: [rows, blocks, fields]."""
    return _fields(packed, 1, bits).reshape(*packed.shape[:2], -1)


def _grouped(codes: NDArray[Any], size: int) -> NDArray[Any]:
    """The weights of each block in groups of `size`."""
    return codes.reshape(*codes.shape[:2], -1, size)


def _signed(codes: Bytes, zero: int, size: int) -> NDArray[np.int8]:
    """codes - zero, in groups of `size`."""
    return _grouped(codes.view(np.int8) - np.int8(zero), size)


def _fifth_bit(packed: Bytes) -> Bytes:
    """16 or 0 for each weight of a block of 32: [rows, blocks, 1, 32]."""
    return np.unpackbits(packed, axis=-1, bitorder="little")[:, :, None, :] << np.uint8(4)


def _halves(blocks: Bytes, place: int) -> Floats:
    """The float16 at byte `place` of every block: float32 [rows, blocks, 1]."""
    return np.ascontiguousarray(blocks[:, :, place : place + 2]).view("<f2").astype(np.float32)


def _scales_and_minimums(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of the 8 groups of Q4_K and Q5_K: 6-bit numbers, times the block's two float16.

    Of 12 bytes, the first 4 hold groups 0 to 3's scales and the next 4 their minimums, in 6 bits;
    groups 4 to 7 have their low 4 bits in the last 4 bytes and their high 2 above the others'.
    """
    low, middle, last = (blocks[:, :, i : i + 4] for i in (4, 8, 12))
    scales = np.concatenate([low & 63, last & 15 | low >> 6 << 4], axis=-1)
    minimums = np.concatenate([middle & 63, last >> 4 | middle >> 6 << 4], axis=-1)
    return (
        _halves(blocks, 0) * scales.astype(np.float32),
        -(_halves(blocks, 2) * minimums.astype(np.float32)),
    )
