"""The products over tiles and rows against dense arithmetic in float64, and against themselves."""

from __future__ import annotations

import numpy as np
import pytest
from packing import DTYPES, Quantized, row_ffn, tile_ffn, tile_matrix

from flashllm import kernels
from flashllm.kernels.weights import QUANTIZED, Activations, FineActivations, padded

SHAPES = [(16, 32), (48, 96), (33, 100), (272, 64)]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request):
    backend = kernels.load(request.param, threads=2)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def cpu():
    backend = kernels.load("cpu", threads=2)
    yield backend
    backend.close()


def activations(rng, rows, width, magnitude=1.0):
    x = Activations(rows, width)
    x.values[:, :width] = rng.standard_normal((rows, width)) * magnitude
    x.values[0, :width] = 0
    return x


def quantized(backend, x):
    """Quantise x, then make its floats those the codes stand for: both kinds of kernel and the
    reference then compute the same thing."""
    program = backend.program(x.capacity)
    program.quantize(x)
    program.run(x.capacity)
    codes = x.codes.reshape(x.capacity, -1, 32).astype(np.float32)
    x.values[:] = (codes * x.scales[..., None]).reshape(x.values.shape)


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_matmul_is_the_dense_product(backend, dtype, shape):
    rng = np.random.default_rng(1)
    w = Quantized(rng, *shape, dtype)
    weight, _owners = tile_matrix(w, per_unit=2)
    x = activations(rng, 7, shape[1], magnitude=3)
    quantized(backend, x)
    out = np.full((7, padded(shape[0])), 5, np.float32)
    program = backend.program(7)
    program.matmul(x, weight, out)
    program.matmul(x, weight, out, accumulate=True)
    program.run(7)
    expected = 2 * (x.values[:, : shape[1]].astype(np.float64) @ w.dense().T.astype(np.float64))
    assert relative(out[:, : shape[0]], expected) < 2e-6


@pytest.mark.parametrize("rows", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_matmul_of_fine_activations_is_near_exact(backend, dtype, rows):
    rng = np.random.default_rng(8)
    w = Quantized(rng, 48, 160, dtype)
    weight, _owners = tile_matrix(w, per_unit=2)
    x = FineActivations(rows, 160)
    x.values[:, :160] = rng.standard_normal((rows, 160)) * 4
    out = np.full((rows, 64), 3, np.float32)
    program = backend.program(rows)
    program.quantize(x)
    program.matmul(x, weight, out)
    program.matmul(x, weight, out, accumulate=True)
    program.run(rows)
    expected = 2 * (x.values[:, :160].astype(np.float64) @ w.dense().T)
    assert relative(out[:, :48], expected) < 5e-5


@pytest.mark.parametrize("dtype", sorted(QUANTIZED))
def test_full_range_codes_do_not_saturate(backend, dtype):
    """Largest codes against largest activations: where a 16-bit partial sum would overflow."""
    rng = np.random.default_rng(2)
    w = Quantized(rng, 32, 64, dtype)
    w.codes[:16] = 255 if dtype == "q8" else 15
    w.codes[16:] = 0
    weight, _owners = tile_matrix(w, per_unit=1)
    x = Activations(5, 64)
    x.values[:] = 127
    x.values[1] = -127
    x.values[2, ::2] = -127
    quantized(backend, x)
    out = np.zeros((5, 64), np.float32)
    program = backend.program(5)
    program.matmul(x, weight, out)
    program.run(5)
    expected = x.values[:, :64].astype(np.float64) @ w.dense().T.astype(np.float64)
    assert relative(out[:, :32], expected) < 2e-6


@pytest.mark.parametrize("down_dtype", ["q8", "f16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["silu", "gelu", "relu"])
def test_tile_ffn_is_the_dense_one(backend, dtype, down_dtype, function):
    rng = np.random.default_rng(3)
    width, neurons, rows = 96, 128, 6
    gate, up = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(2))
    down = Quantized(rng, width, neurons, down_dtype)
    ffn, _owners = tile_ffn(gate, up, down, per_unit=2)
    x, h = activations(rng, rows, width), Activations(rows, ffn.padded_neurons)
    quantized(backend, x)
    first = rng.standard_normal((rows, padded(width))).astype(np.float32)
    out = first.copy()
    program = backend.program(rows)
    program.ffn_hidden(x, ffn, function, h)
    program.run(rows)
    expected_h = dense_hidden(x.values[:, :width], gate.dense(), up.dense(), function)
    assert relative(h.values[:, :neurons], expected_h) < 5e-6

    quantized(backend, h)
    program = backend.program(rows)
    program.ffn_down(h, ffn, out, accumulate=True)
    program.run(rows)
    expected = first[:, :width] + h.values[:, :neurons].astype(np.float64) @ down.dense().T
    assert relative(out[:, :width], expected) < 2e-6


@pytest.mark.parametrize("width", [64, 96, 576])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_ffn_computes_the_named_neurons(backend, dtype, width):
    rng = np.random.default_rng(4)
    neurons, rows = 40, 3
    gate, up, down = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(3))
    active = np.sort(rng.permutation(neurons)[:11])
    ffn, _owners = row_ffn(gate, up, down, active)
    x, h = activations(rng, rows, width), Activations(rows, len(active))
    quantized(backend, x)
    out = np.zeros((rows, padded(width)), np.float32)
    program = backend.program(rows)
    program.ffn_hidden(x, ffn, "relu", h)
    program.ffn_down(h, ffn, out, accumulate=True)
    program.run(rows)
    v = x.values[:, :width]
    expected_h = dense_hidden(v, gate.dense()[active], up.dense()[active], "relu")
    assert relative(h.values[:, : len(active)], expected_h) < 5e-6
    assert relative(out[:, :width], expected_h @ down.dense()[active]) < 1e-5


def dense_hidden(x, gate, up, function):
    g, u = (x.astype(np.float64) @ w.T.astype(np.float64) for w in (gate, up))
    if function == "relu":
        return np.maximum(g, 0) * u
    if function == "gelu":
        return 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u
    return g / (1 + np.exp(-g)) * u


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_company_or_on_threads(dtype):
    """Bitwise: T = 1 .. 9 rows at once, 1 to 3 threads, for every product."""
    rng = np.random.default_rng(5)
    width, neurons, rows = 96, 96, 9
    gate, up = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(2))
    down = Quantized(rng, width, neurons, dtype)
    down_t = Quantized(rng, neurons, width, dtype)
    ffn, _a = tile_ffn(gate, up, down, per_unit=1)
    bundles, _b = row_ffn(gate, up, down_t, range(neurons))
    weight, _c = tile_matrix(gate, per_unit=3)
    values = rng.standard_normal((rows, width)).astype(np.float32)

    def compute(threads, chunks):
        backend = kernels.load("cpu", threads)
        x, h, r = Activations(rows, width), Activations(rows, neurons), Activations(rows, neurons)
        outs = [np.zeros((rows, 128), np.float32) for _ in range(3)]
        program = backend.program(rows)
        program.quantize(x)
        program.matmul(x, weight, outs[0])
        program.ffn_hidden(x, ffn, "silu", h)
        program.ffn_down(h, ffn, outs[1])
        program.ffn_hidden(x, bundles, "silu", r)
        program.ffn_down(r, bundles, outs[2])
        results = []
        start = 0
        for count in chunks:
            x.values[:count, :width] = values[start : start + count]
            for out in outs:
                out[:] = 0
            program.run(count)
            results.append(np.concatenate([out[:count] for out in outs], axis=1))
            start += count
        backend.close()
        return np.concatenate(results)

    expected = compute(1, [1] * rows)
    for threads in (1, 2, 3):
        for chunks in ([9], [4, 5], [2, 7], [8, 1]):
            assert np.array_equal(compute(threads, chunks), expected)
