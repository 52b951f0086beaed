"""The products over tiles and rows against dense arithmetic in float64, and against themselves."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from comparing import relative
from packing import DTYPES, Quantized, row_ffn, tile_ffn, tile_matrix

from flashllm import kernels
from flashllm.errors import InvalidInput
from flashllm.kernels.weights import QUANTIZED, Activations, FineActivations, padded

SHAPES = [(16, 32), (48, 96), (33, 100), (272, 64)]


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request):
    backend = kernels.load(request.param, threads=2)
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


@pytest.mark.parametrize("rows", [1, 3, 4, 7])
@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("dtype", ["f16", "q8", "q4m"])
def test_matmul_adds_its_bias(backend, dtype, fine, rows):
    rng = np.random.default_rng(9)
    w = Quantized(rng, 72, 96, dtype)
    weight, _owners = tile_matrix(w, per_unit=2)
    x = (FineActivations if fine else Activations)(rows, 96)
    x.values[:, :96] = rng.integers(-127, 128, (rows, 96))
    x.values[:, ::32] = 127
    bias = rng.standard_normal(72).astype(np.float32) * 1000
    out = np.zeros((rows, 128), np.float32)
    program = backend.program(rows)
    program.quantize(x)
    program.matmul(x, weight, out, bias=bias)
    program.matmul(x, weight, out, accumulate=True)
    program.run(rows)
    expected = 2 * (x.values[:, :96].astype(np.float64) @ w.dense().T) + bias
    assert relative(out[:, :72], expected) < 1e-5
    assert not out[:, 80:].any()


def hidden_of_one_neuron(backend, function, values):
    """function(value) of each value, through a network of one neuron that passes it on."""
    one, zero = Quantized(np.random.default_rng(0), 1, 1, "f32"), None
    one.values = np.ones((1, 1), np.float32)
    ffn, _owners = tile_ffn(zero, one, one, per_unit=1)
    x, h = Activations(len(values), 1), Activations(len(values), 32)
    x.values[:, 0] = values
    program = backend.program(len(values))
    program.ffn_hidden(x, ffn, function, h)
    program.run(len(values))
    return h.values[:, 0]


def test_exact_gelu(backend):
    """erf to 2e-7, at every size and sign."""
    sizes = np.concatenate([np.geomspace(1e-8, 30, 3000), np.linspace(0, 6, 3000)])
    values = np.concatenate([-sizes, sizes]).astype(np.float32)
    ours = hidden_of_one_neuron(backend, "gelu_erf", values).astype(np.float64)
    x = values.astype(np.float64)
    expected = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
    assert (np.abs(ours - expected) <= 0.5 * np.abs(x) * 2e-7 + 6e-8 * np.abs(expected)).all()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("down_dtype", ["q8", "f16"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["silu", "gelu", "gelu_erf", "relu"])
def test_tile_ffn_is_the_dense_one(backend, dtype, down_dtype, function, gated):
    rng = np.random.default_rng(3)
    width, neurons, rows = 96, 128, 6
    gate, up = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(2))
    gate = gate if gated else None
    down = Quantized(rng, width, neurons, down_dtype)
    ffn, _owners = tile_ffn(gate, up, down, per_unit=2)
    x, h = activations(rng, rows, width), Activations(rows, ffn.padded_neurons)
    quantized(backend, x)
    first = rng.standard_normal((rows, padded(width))).astype(np.float32)
    out = first.copy()
    program = backend.program(rows)
    program.ffn_hidden(x, ffn, function, h)
    program.run(rows)
    expected_h = dense_hidden(x.values[:, :width], gate, up, function)
    assert relative(h.values[:, :neurons], expected_h) < 5e-6

    quantized(backend, h)
    program = backend.program(rows)
    program.ffn_down(h, ffn, out, accumulate=True)
    program.run(rows)
    expected = first[:, :width] + h.values[:, :neurons].astype(np.float64) @ down.dense().T
    assert relative(out[:, :width], expected) < 2e-6


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("kind", ["tile", "row"])
@pytest.mark.parametrize("dtype", ["f32", "q4m"])
def test_ffn_biases(backend, dtype, kind, gated, rows):
    """Neurons that fill the last unit have none: they stay exactly 0."""
    rng = np.random.default_rng(13)
    width, neurons = 80, 70
    gate, up = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(2))
    down = Quantized(rng, neurons, width, dtype)
    if not gated:
        gate = None
    if kind == "tile":
        down = Quantized(rng, width, neurons, dtype)
        ffn, _owners = tile_ffn(gate, up, down, per_unit=1)
    else:
        ffn, _owners = row_ffn(gate, up, down, range(neurons))
    gate_bias, up_bias = rng.standard_normal((2, neurons)).astype(np.float32) * 5
    down_bias = rng.standard_normal(width).astype(np.float32) * 100
    x, h = activations(rng, rows, width), Activations(rows, 96)
    quantized(backend, x)
    out = rng.standard_normal((rows, 128)).astype(np.float32)
    program = backend.program(rows)
    biases = {"gate_bias": gate_bias} if gated else {}
    program.ffn_hidden(x, ffn, "silu", h, up_bias=up_bias, **biases)
    program.run(rows)
    v = x.values[:, :width].astype(np.float64)
    expected = dense_hidden(v, gate, up, "silu", gate_bias, up_bias)
    assert relative(h.values[:, :neurons], expected) < 5e-6
    assert not h.values[:, neurons:].any()

    quantized(backend, h)
    program = backend.program(rows)
    program.ffn_down(h, ffn, out, bias=down_bias)
    program.ffn_down(h, ffn, out, accumulate=True)
    program.run(rows)
    matrix = down.dense().T if kind == "tile" else down.dense()
    expected = 2 * (h.values[:, :neurons].astype(np.float64) @ matrix) + down_bias
    assert relative(out[:, :width], expected) < 2e-6


def test_biases_must_fit(cpu):
    rng = np.random.default_rng(0)
    up, down = Quantized(rng, 70, 64, "f32"), Quantized(rng, 64, 70, "f32")
    ffn, _owners = tile_ffn(None, up, down, per_unit=1)
    x, h = Activations(2, 64), Activations(2, 96)
    program, bias = cpu.program(2), np.zeros(70, np.float32)
    with pytest.raises(InvalidInput, match="without gates"):
        program.ffn_hidden(x, ffn, "relu", h, gate_bias=bias)
    with pytest.raises(InvalidInput, match="up_bias"):
        program.ffn_hidden(x, ffn, "relu", h, up_bias=bias[:69].copy())
    with pytest.raises(InvalidInput, match="bias"):
        program.ffn_down(h, ffn, x.values, bias=bias)
    with pytest.raises(InvalidInput, match="silu, gelu"):
        program.ffn_hidden(x, ffn, "tanh", h)


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("width", [64, 96, 576])
@pytest.mark.parametrize("dtype", DTYPES)
def test_row_ffn_computes_the_named_neurons(backend, dtype, width, gated):
    rng = np.random.default_rng(4)
    neurons, rows = 40, 3
    gate, up, down = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(3))
    gate = gate if gated else None
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
    expected_h = dense_hidden(v, gate, up, "relu")[:, active]
    assert relative(h.values[:, : len(active)], expected_h) < 5e-6
    assert relative(out[:, :width], expected_h @ down.dense()[active]) < 1e-5


def dense_hidden(x, gate, up, function, gate_bias=0, up_bias=0):
    x = x.astype(np.float64)
    u = x @ up.dense().T + up_bias
    if gate is None:
        return activated(u, function)
    return activated(x @ gate.dense().T + gate_bias, function) * u


def activated(x, function):
    if function == "relu":
        return np.maximum(x, 0)
    if function == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    if function == "gelu_erf":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    return x / (1 + np.exp(-x))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_company_or_on_threads(dtype, gated):
    """Bitwise: T = 1 .. 9 rows at once, 1 to 3 threads, for every product."""
    rng = np.random.default_rng(5)
    width, neurons, rows = 96, 96, 9
    gate, up = (Quantized(rng, neurons, width, dtype, 0.3) for _ in range(2))
    down = Quantized(rng, width, neurons, dtype)
    down_t = Quantized(rng, neurons, width, dtype)
    ffn, _a = tile_ffn(gate if gated else None, up, down, per_unit=1)
    bundles, _b = row_ffn(gate if gated else None, up, down_t, range(neurons))
    bias = rng.standard_normal(neurons).astype(np.float32)
    weight, _c = tile_matrix(gate, per_unit=3)
    values = rng.standard_normal((rows, width)).astype(np.float32)

    def compute(threads, chunks):
        backend = kernels.load("cpu", threads)
        x, h, r = Activations(rows, width), Activations(rows, neurons), Activations(rows, neurons)
        outs = [np.zeros((rows, 128), np.float32) for _ in range(3)]
        program = backend.program(rows)
        program.quantize(x)
        program.matmul(x, weight, outs[0], bias=bias)
        program.ffn_hidden(x, ffn, "gelu_erf", h, up_bias=bias)
        program.ffn_down(h, ffn, outs[1], bias=bias)
        program.ffn_hidden(x, bundles, "silu", r, up_bias=bias)
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


def test_sums_of_the_feed_forward_take_no_room():
    """However many layers: of its own, each of 32 of width 4096 would need 8 MB for a prompt's."""
    rng = np.random.default_rng(5)
    w = [Quantized(rng, *shape, "q8") for shape in ((64, 256), (64, 256), (256, 64))]
    ffn, _owners = tile_ffn(*w, per_unit=2)
    h, out = Activations(512, ffn.padded_neurons), np.zeros((512, 256), np.float32)
    backend = kernels.load("cpu")
    tracemalloc.start()
    try:
        programs = [backend.program(512) for _ in range(8)]
        for program in programs:
            program.ffn_down(h, ffn, out)
        assert tracemalloc.get_traced_memory()[0] < 0.2 * out.nbytes
    finally:
        tracemalloc.stop()
        backend.close()
