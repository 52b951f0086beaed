"""How many of a RowFFN's neurons are computed may change from one run of a program to the next."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from packing import Quantized, row_ffn

from flashllm import kernels
from flashllm.errors import InvalidInput
from flashllm.kernels.weights import Activations, RowFFN

WIDTH, NEURONS, ROWS = 96, 24, 3


@pytest.fixture(scope="module", params=["cpu", "reference"])
def backend(request):
    backend = kernels.load(request.param, threads=3)
    yield backend
    backend.close()


class Case:
    """One feed-forward with biases, recorded once; `hidden` is 7 where nothing was written."""

    def __init__(self, backend, ffn, seed=3):
        rng = np.random.default_rng(seed)
        self.x, self.h = Activations(ROWS, WIDTH), Activations(ROWS, NEURONS)
        self.x.values[:, :WIDTH] = rng.standard_normal((ROWS, WIDTH))
        bias = rng.standard_normal(NEURONS).astype(np.float32)[: len(ffn.table)].copy()
        gate_bias = bias if ffn.gated else None
        self.out = np.zeros((ROWS, 128), np.float32)
        self.program = backend.program(ROWS)
        self.program.quantize(self.x)
        self.program.ffn_hidden(self.x, ffn, "relu", self.h, gate_bias=gate_bias, up_bias=bias)
        self.down_bias = rng.standard_normal(WIDTH).astype(np.float32)
        self.program.ffn_down(self.h, ffn, self.out, bias=self.down_bias)

    def run(self):
        self.h.values[:] = 7
        self.out[:] = 5
        self.program.run(ROWS)
        return self.h.values.copy(), self.out[:, :WIDTH].copy()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("dtype", ["f16", "q8", "q4m"])
def test_each_run_computes_as_many_as_the_count_says(backend, dtype, gated):
    """Bitwise what a table of that length gives; entries past the count are not even read."""
    rng = np.random.default_rng(2)
    gate, up, down = (Quantized(rng, NEURONS, WIDTH, dtype, 0.3) for _ in range(3))
    whole, _owners = row_ffn(gate if gated else None, up, down, range(NEURONS))
    table, count = whole.table.copy(), np.zeros(1, np.int64)
    live = Case(backend, dataclasses.replace(whole, table=table, count=count))
    for computed in (5, NEURONS, 1, 0, 17):
        count[0] = computed
        table[:] = 0
        table[:computed] = whole.table[:computed]
        hidden, out = live.run()
        cut = dataclasses.replace(whole, table=whole.table[:computed].copy())
        cut_hidden, cut_out = Case(backend, cut).run()
        assert np.array_equal(hidden[:, :computed], cut_hidden[:, :computed])
        assert (hidden[:, computed:NEURONS] == 7).all()
        assert np.array_equal(out, cut_out)
        if computed == 0:
            assert (out == live.down_bias).all()


def test_the_count_is_one_int64():
    table = np.zeros(4, np.int64)
    for count in (np.zeros(1, np.int32), np.zeros(2, np.int64), np.zeros((), np.int64)):
        with pytest.raises(InvalidInput, match="one int64"):
            RowFFN("f32", 64, table, count=count)
