"""What a feed-forward does to gate and up: every function, on both kinds of unit, at every edge."""

from __future__ import annotations

import numpy as np
import pytest
from packing import Quantized, row_ffn, tile_ffn

from flashllm import kernels
from flashllm.errors import InvalidInput
from flashllm.kernels.weights import ACTIVATIONS, Activations, Nonlinearity

VALUES = np.array([-3, -0.25, -0.0, 0, 1e-30, 0.25, np.nextafter(np.float32(0.25), 1), 2], "f")
FUNCTIONS = {
    "relu": (Nonlinearity("relu"), lambda x: np.where(x > 0, x, 0)),
    "relu2": (Nonlinearity("relu2"), lambda x: np.where(x > 0, x * x, 0)),
    "fatrelu": (Nonlinearity("relu", 0.25), lambda x: np.where(x > 0.25, x, 0)),
}


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request):
    backend = kernels.load(request.param, threads=2)
    yield backend
    backend.close()


def identity(rows):
    found = Quantized(np.random.default_rng(0), rows, rows, "f32")
    found.values = np.eye(rows, dtype=np.float32)
    return found


def hidden(backend, kind, act, gates, ups, rows):
    """act(gate) * up of each pair, or act(up) if gates is None: a neuron for each pair, whose
    inputs are what it is to see."""
    neurons = len(ups)
    seen = [x for x in (gates, ups) if x is not None]
    matrices = []
    for i in range(len(seen)):
        matrix = Quantized(np.random.default_rng(0), neurons, len(seen) * neurons, "f32")
        matrix.values = np.zeros((neurons, len(seen) * neurons), np.float32)
        matrix.values[:, i * neurons : (i + 1) * neurons] = np.eye(neurons)
        matrices.append(matrix)
    gate = matrices[0] if gates is not None else None
    shape = (matrices[0].cols, neurons)
    down = Quantized(np.random.default_rng(0), *(shape if kind == "tile" else shape[::-1]), "f32")
    if kind == "tile":
        ffn, _owners = tile_ffn(gate, matrices[-1], down, per_unit=1)
    else:
        ffn, _owners = row_ffn(gate, matrices[-1], down, range(neurons))
    x, h = Activations(rows, ffn.width), Activations(rows, 32)
    x.values[:, : ffn.width] = np.concatenate(seen)
    program = backend.program(rows)
    program.ffn_hidden(x, ffn, act, h)
    program.run(rows)
    assert (h.values == h.values[0]).all(), "a row depends on its company"
    return h.values[0, :neurons]


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("kind", ["tile", "row"])
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_that_are_zero_below_a_bound_are_exact(backend, name, kind, rows):
    act, expected = FUNCTIONS[name]
    assert np.array_equal(hidden(backend, kind, act, None, VALUES, rows), expected(VALUES))
    gates, ups = (grid.reshape(-1)[::3].copy() for grid in np.meshgrid(VALUES, VALUES))
    found = hidden(backend, kind, act, gates, ups, rows)
    assert np.array_equal(found, (expected(gates) * ups).astype(np.float32))


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("kind", ["tile", "row"])
@pytest.mark.parametrize("function", ["relu", "silu"])
def test_up_may_go_through_relu_as_well(backend, function, kind, rows):
    gates, ups = (grid.reshape(-1)[::3].copy() for grid in np.meshgrid(VALUES, VALUES))
    once = hidden(backend, kind, Nonlinearity(function), gates, ups, rows)
    twice = hidden(backend, kind, Nonlinearity(function, up_relu=True), gates, ups, rows)
    assert np.array_equal(twice, np.where(ups > 0, once, 0))
    assert (once != twice).any()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_name_stands_for_the_plain_function(backend, name):
    plain = hidden(backend, "tile", name, VALUES, VALUES[::-1], 1)
    assert np.array_equal(
        plain, hidden(backend, "tile", Nonlinearity(name), VALUES, VALUES[::-1], 1)
    )


def test_impossible_ones_are_refused(cpu):
    with pytest.raises(InvalidInput, match="silu, gelu"):
        Nonlinearity("tanh")
    for threshold in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidInput, match="no threshold"):
            Nonlinearity("relu", threshold)
    for name in set(ACTIVATIONS) - {"relu"}:
        with pytest.raises(InvalidInput, match="no threshold"):
            Nonlinearity(name, 0.1)
    w = identity(64)
    ffn, _owners = tile_ffn(None, w, w, per_unit=1)
    x = Activations(1, 64)
    with pytest.raises(InvalidInput, match="without gates"):
        cpu.program(1).ffn_hidden(x, ffn, Nonlinearity("relu", up_relu=True), x)
