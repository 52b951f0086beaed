"""Products over bitmaps give, bit for bit, what the same tiles give that are stored whole."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import relative
from packing import Quantized, bitmap_ffn, bitmap_matrix, pruned, tile_ffn, tile_matrix

from flashllm.errors import InvalidInput
from flashllm.kernels.weights import Activations, FineActivations, TileMatrix

DTYPES = ("f16", "bf16", "q8", "q4")
SPARSITIES = (0.0, 0.3, 0.5, 0.9, 1.0)
ROWS = 9


def weights(rng, rows, cols, dtype, sparsity):
    return pruned(Quantized(rng, rows, cols, dtype, 0.3), rng, sparsity)


def filled(rng, x, width):
    x.values[:, :width] = rng.standard_normal((len(x.values), width))
    return x


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("shape", [(16, 32), (33, 100), (80, 2080)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul(cpu, twin, dtype, shape, sparsity):
    rng = np.random.default_rng(1)
    w = weights(rng, *shape, dtype, sparsity)
    stored = [pack(w, per_unit=2) for pack in (tile_matrix, bitmap_matrix)]
    x = filled(rng, Activations(ROWS, shape[1]), shape[1])
    bias = rng.standard_normal(shape[0]).astype(np.float32)
    outs = []
    for rows in (1, 2, 3, 4, ROWS):
        for weight, _owners in stored:
            out = np.ones((ROWS, 128), np.float32)
            program = cpu.program(ROWS)
            program.quantize(x)
            program.matmul(x, weight, out, bias=bias)
            program.matmul(x, weight, out, accumulate=True)
            program.run(rows)
            outs.append(out[:rows])
        assert np.array_equal(*outs[-2:])
        assert np.array_equal(outs[-1][0], outs[0][0])
    of_twin = np.zeros((ROWS, 128), np.float32)
    program = twin.program(ROWS)
    program.matmul(x, stored[1][0], of_twin)
    program.run(ROWS)
    assert np.array_equal(of_twin[:, : shape[0]], (x.values[:, : shape[1]] @ w.dense().T))


@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_of_fine_activations(cpu, dtype):
    rng = np.random.default_rng(2)
    w = weights(rng, 72, 96, dtype, 0.6)
    stored = [pack(w, per_unit=2) for pack in (tile_matrix, bitmap_matrix)]
    x = filled(rng, FineActivations(ROWS, 96), 96)
    for rows in (1, 2, 3, ROWS):
        outs = []
        for weight, _owners in stored:
            out = np.ones((ROWS, 128), np.float32)
            program = cpu.program(ROWS)
            program.quantize(x)
            program.matmul(x, weight, out, accumulate=True)
            program.run(rows)
            outs.append(out[:rows])
        assert np.array_equal(*outs)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("dtype, down_dtype", [*zip(DTYPES, DTYPES, strict=True), ("q4", "q8")])
def test_feed_forward(cpu, twin, dtype, down_dtype, sparsity, gated):
    rng = np.random.default_rng(3)
    width, neurons = 112, 130
    gate, up = (weights(rng, neurons, width, dtype, sparsity) for _ in range(2))
    down = weights(rng, width, neurons, down_dtype, sparsity)
    gate = gate if gated else None
    stored = [pack(gate, up, down, per_unit=3) for pack in (tile_ffn, bitmap_ffn)]
    x = filled(rng, Activations(ROWS, width), width)
    bias = rng.standard_normal(neurons).astype(np.float32)

    def run(backend, ffn, rows):
        h, out = Activations(ROWS, ffn.padded_neurons), np.ones((ROWS, 128), np.float32)
        program = backend.program(ROWS)
        program.quantize(x)
        program.ffn_hidden(x, ffn, "silu", h, up_bias=bias)
        program.ffn_down(h, ffn, out, accumulate=True)
        program.run(rows)
        return np.hstack([out[:rows], h.values[:rows]])

    for rows in (1, 3, ROWS):
        assert np.array_equal(*(run(cpu, ffn, rows) for ffn, _owners in stored))
    assert np.array_equal(*(run(twin, ffn, ROWS) for ffn, _owners in stored))
    assert relative(run(cpu, stored[1][0], ROWS), run(twin, stored[1][0], ROWS)) < 0.03


def test_a_dtype_without_a_code_for_zero_has_no_bitmaps():
    with pytest.raises(InvalidInput, match="no bitmaps of q4m"):
        TileMatrix("q4m", 16, 32, 1, np.zeros(1, np.int64), bitmap=True)
