"""GGUF's blocks of weights, taken apart into codes, scales and minimums without loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.flash.quantize import Quantized

KEPT = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8", "Q4_0": "q4", "Q4_1": "q4m"}
"""The flash dtype that holds each GGUF type exactly."""

Bytes = NDArray[np.uint8]


def decode(raw: Bytes, dtype: str) -> Quantized:
    """Rows of a GGUF tensor, uint8 [rows, bytes of a row], as the matrix they stand for.

    Q8_0: float16 scale, 32 int8. Q4_0: float16 scale, 16 bytes; Q4_1: float16 scale, float16
    minimum, 16 bytes; byte i of these holds column i below and column 16 + i above.
    Source: github.com/ggml-org/llama.cpp, ggml-quants.c.
    """
    return _DECODERS[dtype](raw)


def _plain(dtype: str, kind: Any) -> Callable[[Bytes], Quantized]:
    return lambda raw: Quantized(dtype, raw.view(kind))


def _q8_0(raw: Bytes) -> Quantized:
    blocks = raw.reshape(len(raw), -1, 34)
    codes = blocks[:, :, 2:] ^ np.uint8(128)  # int8 + 128
    return Quantized("q8", codes.reshape(len(raw), -1), _float16(blocks, 0))


def _q4_0(raw: Bytes) -> Quantized:
    blocks = raw.reshape(len(raw), -1, 18)
    return Quantized("q4", _nibbles(blocks[:, :, 2:]), _float16(blocks, 0))


def _q4_1(raw: Bytes) -> Quantized:
    blocks = raw.reshape(len(raw), -1, 20)
    return Quantized("q4m", _nibbles(blocks[:, :, 4:]), _float16(blocks, 0), _float16(blocks, 2))


def _nibbles(packed: Bytes) -> Bytes:
    codes = np.empty((*packed.shape[:2], 32), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, :, :16])
    np.right_shift(packed, 4, out=codes[:, :, 16:])
    return codes.reshape(len(packed), -1)


def _float16(blocks: Bytes, place: int) -> NDArray[np.float16]:
    """The float16 at byte `place` of every block: [rows, blocks]."""
    return np.ascontiguousarray(blocks[:, :, place : place + 2]).view("<f2")[:, :, 0]


_DECODERS = {
    "F32": _plain("f32", "<f4"),
    "F16": _plain("f16", "<f2"),
    "BF16": _plain("bf16", ml_dtypes.bfloat16),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
}
