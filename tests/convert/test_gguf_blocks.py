"""GGUF's blocks over their full range, held to the public package's dequantisation."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as public_dequantize

from flashllm.convert.gguf_blocks import KEPT, decode
from flashllm.flash.quantize import dequantize

SCALES = {"Q8_0": 1, "Q4_0": 1, "Q4_1": 2}


@pytest.mark.parametrize("dtype", KEPT)
def test_every_code_and_scale(dtype: str) -> None:
    kind = GGMLQuantizationType[dtype]
    block, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(3)
    rows, blocks = 7, 40 if block > 1 else 33
    raw = rng.integers(0, 256, (rows, blocks, size), np.uint8)
    if dtype in SCALES:  # finite scales of every magnitude, subnormal ones and both signs included
        n = SCALES[dtype]
        bits = rng.integers(0, 0x7C00, (rows, blocks, n), np.uint16)
        bits |= rng.integers(0, 2, bits.shape, np.uint16) << 15
        raw[:, :, : 2 * n] = bits.view(np.uint8)
    else:
        values = rng.standard_normal((rows, blocks)).astype(np.float32)
        raw = {
            "F32": values,
            "F16": values.astype(np.float16),
            "BF16": (values.view(np.uint32) >> 16).astype(np.uint16),
        }[dtype].view(np.uint8)
    raw = raw.reshape(rows, -1)
    matrix = decode(raw, dtype)
    assert matrix.dtype == KEPT[dtype]
    np.testing.assert_array_equal(dequantize(matrix), public_dequantize(raw, kind))
