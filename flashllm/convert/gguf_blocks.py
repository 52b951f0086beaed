"""Rows of a tensor, as its file has them, to weights: exactly, or in a dtype that keeps them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from flashllm.convert.block_layouts import Bytes, Floats, Groups, take_apart
from flashllm.errors import UnsupportedModel
from flashllm.flash.layout import GROUP
from flashllm.flash.quantize import ZERO_CODE, Quantized, quantize

_KEEPS = {
    "f32": ("F32",),
    "f16": ("F16",),
    "bf16": ("BF16",),
    "q8": ("Q8_0", "Q5_0", "IQ4_NL", "MXFP4", "IQ4_XS", "Q8_K", "Q5_1", "Q5_K", "Q6_K"),
    "q4": ("Q4_0",),
    "q4m": ("Q4_1", "Q4_K", "Q2_K", "Q3_K"),
}
KEPT = {dtype: kept for kept, dtypes in _KEEPS.items() for dtype in dtypes}
"""The flash dtype that each tensor type is kept in. Two and three bits go to q4m, whose 16 levels
add little to the error such weights have already; q8 would triple their size."""

EXACT = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "IQ4_NL"})
"""The types that lose nothing. MXFP4 loses only scales beyond float16; IQ4_XS, Q8_K and Q4_K round
their scales, products or float32 numbers, to float16; the others are quantised anew."""

SAME_CODES = EXACT | {"MXFP4", "IQ4_XS", "Q8_K", "Q4_K"}
"""The types whose codes keep() takes over as they are."""

_PLAIN: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
_NARROW_FIRST = ("q4", "q4m", "q8", "f16", "bf16", "f32")


def kept_dtype(dtype: str, where: str) -> str:
    """KEPT[dtype]; `where` names the tensor. Raises UnsupportedModel for types without arithmetic.

    Such are integers, and numbers that need a scale from another tensor (FP8, GPTQ, AWQ).
    """
    if dtype not in KEPT:
        raise UnsupportedModel(
            f"{where} is {dtype}, which is not supported as weights; use a version of the model in "
            "F16, BF16 or F32, or a GGUF file"
        )
    return KEPT[dtype]


def wider(a: str, b: str) -> str:
    """The flash dtype for two matrices that must have one: no narrower than either's, `a` and `b`.

    >>> wider("q8", "q4m"), wider("f16", "bf16")
    ('q8', 'f32')
    """
    if {a, b} == {"f16", "bf16"}:  # neither holds the other
        return "f32"
    return max(a, b, key=_NARROW_FIRST.index)


def exact(raw: Bytes, dtype: str) -> Floats:
    """The weights that rows of a tensor, uint8 [rows, bytes of a row], stand for: [rows, cols].

    Those of a damaged file may be infinite or NaN. Temporaries take a few times the result. Raises
    UnsupportedModel for types without arithmetic.
    """
    kept_dtype(dtype, "a tensor")
    if dtype in _PLAIN:
        weights: Floats = raw.view(_PLAIN[dtype]).astype(np.float32, copy=False)
        return weights
    return _weights(take_apart(raw, dtype))


def decode(raw: Bytes, dtype: str) -> Quantized:
    """Rows of a tensor, as exact() takes them, without loss: in KEPT[dtype] or else in f32."""
    return keep(raw, dtype) if dtype in EXACT else Quantized("f32", exact(raw, dtype))


def keep(raw: Bytes, dtype: str) -> Quantized:
    """Rows of a tensor, as exact() takes them, in KEPT[dtype].

    Weights that are not finite come back as they are, in f32, for the caller to refuse. Raises
    UnsupportedModel as exact() does, and for weights too large for float16 scales.
    """
    kept = kept_dtype(dtype, "a tensor")
    if dtype in _PLAIN:
        return Quantized(kept, raw.view(_PLAIN[dtype]))
    groups = take_apart(raw, dtype)
    if dtype in SAME_CODES and (quantized := _as_codes(groups, kept)):
        return quantized
    weights = _weights(groups)
    return quantize(weights, kept) if np.isfinite(weights).all() else Quantized("f32", weights)


def _weights(groups: Groups) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        weights = groups.codes.astype(np.float32)
        weights *= groups.scales[..., None]
        if groups.minimums is not None:
            weights += groups.minimums[..., None]
    return weights.reshape(len(weights), -1)


def _as_codes(groups: Groups, dtype: str) -> Quantized | None:
    """The same codes with scales and minimums in float16; None if these are beyond its range."""
    rows = len(groups.codes)
    numbers: list[NDArray[np.float16]] = []
    for values in (groups.scales, groups.minimums):
        if values is not None:
            with np.errstate(over="ignore"):
                halves = values.astype(np.float16).reshape(rows, -1)
            if not np.isfinite(halves).all():
                return None
            numbers.append(halves.repeat(groups.codes.shape[-1] // GROUP, axis=1))
    codes = groups.codes.reshape(rows, -1).view(np.uint8) + np.uint8(ZERO_CODE[dtype])
    return Quantized(dtype, codes, *numbers)
