"""Every tensor type over its full range of codes, held to the public package's dequantisation."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as public_dequantize

from flashllm.convert.gguf_blocks import EXACT, KEPT, decode, exact, keep, kept_dtype, wider
from flashllm.errors import UnsupportedModel
from flashllm.flash.layout import DTYPES
from flashllm.flash.quantize import dequantize
from flashllm.formats.ggml_types import READABLE

# Bytes at which a block's float16 numbers begin.
HALVES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
NEARLY = ("IQ4_XS", "Q8_K", "Q4_K")


def random_blocks(dtype: str, largest: float = 65504.0, rows: int = 7) -> np.ndarray:
    """Random bytes uint8 [rows, bytes of a row], their scales finite, of both signs, and tiny ones
    among them."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    rng = np.random.default_rng(3)
    if block == 1:
        values = rng.standard_normal((rows, 256)).astype(np.float32)
        return {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[dtype].view(np.uint8)
    raw = rng.integers(0, 256, (rows, 40, size), np.uint8)
    top = int(np.float16(largest).view(np.uint16))
    for place in HALVES.get(dtype, []):
        bits = rng.integers(0, top, (rows, 40, 1), np.uint16, endpoint=True)
        bits |= rng.integers(0, 2, bits.shape, np.uint16) << 15
        raw[:, :, place : place + 2] = bits.view(np.uint8)
    if dtype == "Q8_K":
        scales = rng.uniform(-largest, largest, (rows, 40, 1)).astype(np.float32)
        raw[:, :, :4] = scales.view(np.uint8)
    if dtype == "MXFP4":
        raw[:, :, 0] = rng.integers(0, 250, (rows, 40))
    return raw.reshape(rows, -1)


def public(raw: np.ndarray, dtype: str) -> np.ndarray:
    """float32 weights as the public package, or for Q8_K a plain loop, has them."""
    if dtype != "Q8_K":
        return public_dequantize(raw, GGMLQuantizationType[dtype])
    weights = []
    for row in raw.reshape(len(raw), -1, 292):
        for block in row:
            scale, *codes = struct.unpack("<f256b32x", block.tobytes())
            weights += [np.float32(scale) * np.float32(code) for code in codes]
    return np.array(weights, np.float32).reshape(len(raw), -1)


@pytest.mark.parametrize("dtype", KEPT)
def test_the_exact_weights_are_the_public_ones(dtype: str) -> None:
    raw = random_blocks(dtype)
    ours, theirs = exact(raw, dtype), public(raw, dtype)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(dequantize(decode(raw, dtype)), theirs)


@pytest.mark.parametrize("dtype", sorted(EXACT))
def test_exact_types_are_kept_exactly(dtype: str) -> None:
    raw = random_blocks(dtype)
    kept = keep(raw, dtype)
    assert kept.dtype == KEPT[dtype]
    np.testing.assert_array_equal(dequantize(kept), public(raw, dtype))


@pytest.mark.parametrize("dtype", sorted(set(KEPT) - EXACT))
def test_other_types_lose_little(dtype: str) -> None:
    raw = random_blocks(dtype, largest=4.0)
    if dtype == "MXFP4":
        raw.reshape(7, -1, 17)[:, :, 0] %= 24
        raw.reshape(7, -1, 17)[:, :, 0] += 105
    kept, weights = keep(raw, dtype), exact(raw, dtype)
    assert kept.dtype == KEPT[dtype]
    error = np.sqrt(np.square(dequantize(kept) - weights).sum() / np.square(weights).sum())
    # Rounding a scale to float16 costs up to 2^-11, 2^-12 on average. Steps of 1/254 of the range
    # of 32 weights cost 0.4 %, steps of 1/15 of the range that random scales make, 2 % and 7 %.
    limits = {"MXFP4": 1e-9, "Q2_K": 0.03, "Q3_K": 0.08} | dict.fromkeys(NEARLY, 2**-12)
    assert error < limits.get(dtype, 0.005)


def test_every_readable_type_is_kept_in_one_of_our_dtypes() -> None:
    assert set(KEPT) == {kind.name for kind in READABLE.values()}
    assert set(KEPT.values()) <= set(DTYPES)
    for number, kind in READABLE.items():
        assert GGMLQuantizationType(number).name == kind.name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (kind.block, kind.nbytes)


def test_scales_beyond_float16_are_quantised_anew() -> None:
    raw = random_blocks("IQ4_XS", rows=1)[:, :136]
    raw[0, :8] = np.frombuffer(struct.pack("<eH", 40_000.0, 0), np.uint8).tolist() + [0] * 4
    raw[0, 8:] = 0x88  # level 1: so the weights fit, though float16 cannot hold their scale
    kept, weights = keep(raw, "IQ4_XS"), exact(raw, "IQ4_XS")
    assert np.abs(weights).max() == 40_000 * 32
    np.testing.assert_allclose(dequantize(kept), weights, rtol=1e-3)
    raw[0, 8:] = 0
    with pytest.raises(UnsupportedModel, match="too large for q8"):
        keep(raw, "IQ4_XS")


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_that_are_not_finite_come_back_as_such(dtype: str) -> None:
    raw = random_blocks(dtype, largest=1.0)
    place = HALVES[dtype][0]
    for scale in (np.inf, np.nan):
        raw[2, place : place + 2] = np.float16([scale]).view(np.uint8)
        assert not keep(raw, dtype).is_finite()
        assert not np.isfinite(exact(raw, dtype)).all()


def test_types_without_arithmetic_are_refused_by_name() -> None:
    assert kept_dtype("Q6_K", "x") == "q8"
    with pytest.raises(UnsupportedModel, match="tensor 'a' is F8_E4M3"):
        kept_dtype("F8_E4M3", "tensor 'a'")


def test_wider() -> None:
    for a in DTYPES:
        assert wider(a, a) == a
        for b in DTYPES:
            assert wider(a, b) == wider(b, a)
    assert wider("q4", "q4m") == "q4m"
    assert wider("q8", "f16") == "f16"
    assert wider("f16", "bf16") == "f32"
