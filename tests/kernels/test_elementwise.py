"""Norms, positions, embeddings and attention against their twins; half conversion, every value."""

from __future__ import annotations

import numpy as np
import pytest
from packing import DTYPES, Quantized, tile_matrix

from flashllm import kernels
from flashllm.cache.kv import Sequence
from flashllm.kernels.weights import Activations, FineActivations, KVRows, Scoring, padded
from flashllm.layers.rope import RopeTable


@pytest.fixture(scope="module")
def cpu():
    backend = kernels.load("cpu", threads=2)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def twin():
    return kernels.load("reference")


def both(cpu, twin, rows, record):
    """Results of record(program) -> array on both backends, after one run of `rows`."""
    results = []
    for backend in (cpu, twin):
        program = backend.program(rows)
        result = record(program)
        program.run(rows)
        results.append(result[:rows].copy())
    return results


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("width", [32, 100, 576])
def test_rms_norm(cpu, twin, width):
    rng = np.random.default_rng(1)
    x = np.zeros((5, padded(width)), np.float32)
    x[:, :width] = rng.standard_normal((5, width)) * 30
    weight = rng.standard_normal(width).astype(np.float32)

    def record(program):
        out = np.zeros_like(x)
        program.rms_norm(x, weight, 1e-5, out)
        return out

    ours, theirs = both(cpu, twin, 5, record)
    assert relative(ours, theirs) < 1e-6
    assert not ours[:, width:].any()


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


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_attention_matches_its_twin_over_two_sequences(cpu, twin, dtype):
    rng = np.random.default_rng(5)
    heads, kv_heads, dim, layers = 6, 2, 32, 2
    owners = [Sequence(layers, kv_heads, dim, 64, np.dtype(dtype)) for _ in range(2)]
    history = 41
    kv = KVRows(history, kv_heads, dim, np.dtype(dtype))
    keys = rng.standard_normal((history, 64)).astype(np.float32)
    values = rng.standard_normal((history, 64)).astype(np.float32)
    for owner in owners:
        kv.table[:] = owner.addresses()
        program = cpu.program(history)
        program.write_kv(keys, values, 1, np.arange(history), kv)
        program.run(history)
        keys, values = -keys, values * 2

    rows = KVRows(4, kv_heads, dim, np.dtype(dtype))
    rows.table[:] = [owners[i].addresses() for i in (0, 1, 0, 1)]
    positions = np.array([0, 15, 16, 40], np.int64)
    queries = rng.standard_normal((4, 192)).astype(np.float32) * 3

    def record(program):
        out = np.zeros((4, 192), np.float32)
        program.attend(queries, heads, Scoring(dim**-0.5), 1, positions, rows, out)
        return out

    ours, theirs = both(cpu, twin, 4, record)
    assert relative(ours, theirs) < 1e-5
    # At position 0 there is one key: the result is its value.
    assert np.allclose(np.abs(ours[0, :32]), np.abs(values[0, :32]) / 4, rtol=1e-3)


def test_attention_survives_scores_far_apart(cpu):
    dim = 16
    owner = Sequence(1, 1, dim, 32, np.dtype(np.float16))
    kv = KVRows(32, 1, dim, np.dtype(np.float16))
    kv.table[:] = owner.addresses()
    keys = np.zeros((32, 64), np.float32)
    keys[:, 0] = np.linspace(-60000, 60000, 32)
    values = np.zeros((32, 64), np.float32)
    values[:, 0] = np.arange(32)
    queries = np.zeros((32, 64), np.float32)
    queries[:, 0] = 100
    out = np.zeros((32, 64), np.float32)
    program = cpu.program(32)
    program.write_kv(keys, values, 0, np.arange(32), kv)
    program.attend(queries, 1, Scoring(1.0), 0, np.arange(32), kv, out)
    program.run(32)
    assert np.allclose(out[:, 0], np.arange(32), atol=1e-6)


def test_every_half_survives_the_cache(cpu):
    """All finite float16 values, and the rounding of floats between them, as numpy does it."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)].astype(np.float32)
    between = (finite[1:] + finite[:-1]) / 2
    beyond = np.array([1e9, -1e9, 65519, 65520, 1e-9], np.float32)
    numbers = np.concatenate([finite, between, np.nextafter(between, np.inf), beyond])
    dim = 16
    rows = -(-len(numbers) // dim)
    values = np.zeros((rows, 64), np.float32)
    values[:, :dim] = np.resize(numbers, (rows, dim))
    owner = Sequence(1, 1, dim, rows, np.dtype(np.float16))
    kv = KVRows(rows, 1, dim, np.dtype(np.float16))
    kv.table[:] = owner.addresses()
    program = cpu.program(rows)
    program.write_kv(values, values, 0, np.arange(rows), kv)
    program.run(rows)
    owner.length = rows
    saved = owner.export()
    expected = np.clip(values[:, :dim], -65504, 65504).astype(np.float16)
    assert np.array_equal(saved["values"][0, 0], expected)
    by_position = saved["keys"][0, 0].transpose(0, 2, 1).reshape(-1, dim)[:rows]
    assert np.array_equal(by_position, expected)
