"""Embeddings, rotary positions, quantising, caps and copies against their twins."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import both, relative
from packing import DTYPES, Quantized, tile_matrix

from flashllm.kernels.weights import Activations, FineActivations, padded
from flashllm.layers.rope import RopeTable


@pytest.mark.parametrize("magnitude", [1e-38, 1e-3, 1.0, 1e30])
def test_quantize(cpu, twin, magnitude):
    rng = np.random.default_rng(2)
    results = []
    for backend in (cpu, twin):
        x = Activations(4, 192)
        x.values[:] = np.random.default_rng(2).standard_normal(x.values.shape) * magnitude
        x.values[1] = 0
        program = backend.program(4)
        program.quantize(x)
        program.run(4)
        results.append(x)
    ours, theirs = results
    assert rng is not None
    assert np.array_equal(ours.codes, theirs.codes)
    assert np.array_equal(ours.sums, ours.codes.reshape(4, -1, 32).sum(axis=2))
    assert np.allclose(ours.scales, theirs.scales, rtol=1e-6, atol=0)
    if magnitude > 1e-20:
        step = ours.scales.repeat(32, axis=1)
        assert (np.abs(ours.codes * step - ours.values) <= step * 0.5001).all()


def test_fine_activations_keep_fifteen_bits(cpu, twin):
    results = []
    for backend in (cpu, twin):
        x = FineActivations(3, 96)
        x.values[:, :96] = np.random.default_rng(6).standard_normal((3, 96)) * 20
        x.values[1] = 0
        program = backend.program(3)
        program.quantize(x)
        program.run(3)
        results.append(x)
    ours, theirs = results
    assert np.array_equal(ours.rows.codes, theirs.rows.codes)
    parts = ours.rows.codes * ours.rows.scales.repeat(32, axis=1)
    largest = np.abs(ours.values).reshape(3, -1, 32).max(axis=2).repeat(32, axis=1)
    error = np.abs(parts[0::2] + parts[1::2] - ours.values)
    assert (error <= largest / 127 / 254 * 0.51).all()


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_rope_rotates_and_keeps_lengths(cpu, twin, style):
    rng = np.random.default_rng(3)
    table = RopeTable(600, 3, theta=10000.0, dims=32, style=style)
    table.prepare(np.array([0, 1, 599]), np.full(3, 600))
    positions = np.array([0, 1, 599], np.int64)
    start = rng.standard_normal((3, 128)).astype(np.float32)

    def record(program):
        x = start.copy()
        program.rope(x, 4, 32, positions, table.cos, table.sin, style)
        return x

    ours, theirs = both(cpu, twin, 3, record)
    assert relative(ours, theirs) < 1e-6
    assert np.array_equal(ours[0], start[0])
    lengths = [np.linalg.norm(x.reshape(3, 4, 32), axis=2) for x in (ours, start)]
    assert relative(*lengths) < 1e-6


@pytest.mark.parametrize("style", ["interleaved", "half"])
def test_rope_turns_the_first_elements_of_wider_heads(cpu, twin, style):
    rng = np.random.default_rng(8)
    table = RopeTable(40, 5, theta=100.0, dims=20, style=style, magnitude=1.5)
    table.prepare(np.arange(35, 40), np.full(5, 40))
    start = rng.standard_normal((5, 192)).astype(np.float32)

    def record(program):
        x = start.copy()
        table.record(program, x, 3, 48)
        return x

    ours, theirs = both(cpu, twin, 5, record)
    assert relative(ours, theirs) < 1e-6
    before, after = (x[:, :144].reshape(5, 3, 48) for x in (start, ours))
    assert np.array_equal(after[..., 20:], before[..., 20:])
    assert np.array_equal(ours[:, 144:], start[:, 144:])
    lengths = [np.linalg.norm(x[..., :20], axis=2) for x in (after, before)]
    assert relative(lengths[0], 1.5 * lengths[1]) < 1e-6


def test_rope_tables_of_two_lengths():
    options = {"theta": 50.0, "dims": 4, "style": "half"}
    both_kinds = RopeTable(600, 3, **options, divisors=(2, 3), long_after=500, long_divisors=(5, 7))
    both_kinds.prepare(np.array([599, 3, 1]), np.array([501, 500, 501]))
    assert both_kinds.rows.tolist() == [1199, 3, 601]
    for divisors, first in (((2, 3), 0), ((5, 7), 600)):
        alone = RopeTable(600, 1, **options, divisors=divisors)
        alone.prepare(np.array([599]), np.array([600]))
        last = 256 if first == 0 else 600
        for ours, theirs in ((both_kinds.cos, alone.cos), (both_kinds.sin, alone.sin)):
            assert np.array_equal(ours[first : first + last], theirs[:last])
    angle = 599 / 50.0**0.5 / 7
    assert both_kinds.cos[1199, 1] == np.float32(np.cos(angle))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_reads_rows(cpu, dtype):
    rng = np.random.default_rng(4)
    w = Quantized(rng, 70, 96, dtype)
    weight, _owners = tile_matrix(w, per_unit=2)
    tokens = np.array([69, 0, 16, 33], np.int64)
    out = np.zeros((4, padded(96)), np.float32)
    program = cpu.program(4)
    program.embed(tokens, weight, out)
    program.run(4)
    assert np.allclose(out[:, :96], w.dense()[tokens], rtol=1e-6, atol=1e-7)


def test_embed_scales_and_adds(cpu, twin):
    rng = np.random.default_rng(9)
    w = Quantized(rng, 33, 40, "f16")
    weight, _owners = tile_matrix(w, per_unit=2)
    indices = np.array([32, 0, 16], np.int64)
    first = rng.standard_normal((3, 64)).astype(np.float32)

    def record(program):
        out = first.copy()
        program.embed(indices, weight, out, scale=3.5)
        program.embed(indices, weight, out, accumulate=True)
        return out

    ours, theirs = both(cpu, twin, 3, record)
    assert relative(ours, theirs) < 1e-6
    assert np.allclose(ours[:, :40], 4.5 * w.dense()[indices], rtol=1e-6)
    assert np.array_equal(ours[:, 40:], first[:, 40:])


def test_soft_cap_is_a_tanh_at_every_size(cpu, twin):
    """Also near 0, where 1 - 2 / (e^2x + 1) would cancel, and where e^2x would overflow."""
    sizes = np.geomspace(1e-12, 1e4, 4000)
    x = np.concatenate([-sizes, sizes]).astype(np.float32).reshape(25, 320)

    def record(program):
        out = x.copy()
        program.soft_cap(out, 320, 30.0)
        return out

    ours, theirs = both(cpu, twin, 25, record)
    exact = 30 * np.tanh(x.astype(np.float64) / 30)
    for result in (ours, theirs):
        assert (np.abs(result - exact) <= 4e-7 * np.abs(exact)).all()


def test_copy_takes_the_rows_asked_for(cpu):
    x = np.random.default_rng(10).standard_normal((4, 128)).astype(np.float32)
    out = np.zeros((4, 64), np.float32)
    program = cpu.program(4)
    program.copy(x, 40, out)
    program.run(3)
    assert np.array_equal(out[:3, :40], x[:3, :40])
    assert not out[3].any() and not out[:, 48:].any()
