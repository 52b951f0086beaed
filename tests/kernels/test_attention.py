"""Attention against its twin, whatever is seen and however it is scored; every half, stored."""

from __future__ import annotations

import numpy as np
import pytest
from comparing import both, relative

from flashllm import kernels
from flashllm.cache.kv import Sequence
from flashllm.errors import CorruptModel, InvalidInput
from flashllm.kernels.weights import KVRows, Scoring, q8_keys, q8_values

SCORINGS = {
    "plain": Scoring(0.2),
    "window of 1": Scoring(0.2, window=1),
    "window of 15": Scoring(0.2, window=15),
    "window of 16": Scoring(0.2, window=16),
    "window of 17": Scoring(0.2, window=17),
    "window of 40": Scoring(0.2, window=40),
    "window beyond all": Scoring(0.2, window=1 << 40),
    "cap": Scoring(0.2, soft_cap=0.7),
    "slopes": Scoring(0.2, slopes=(1.0, 0.5, 0.25, 0.0625)),
    "all of it": Scoring(0.2, window=23, soft_cap=2.0, slopes=(1.0, 0.5, 0.25, 0.0625)),
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
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
    tolerance = np.abs(values[0, :32]).max() / 127 / 2 if dtype == np.int8 else 0
    expected = np.abs(values[0, :32]) / 4
    assert np.allclose(np.abs(ours[0, :32]), expected, rtol=1e-3, atol=tolerance / 4)


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


HEADS, KV_HEADS, DIM, COUNT = 4, 2, 16, 100


@pytest.fixture(scope="module", params=[np.float16, np.float32, np.int8])
def history(cpu, request):
    """Two sequences of 100 positions that differ, and queries for each position."""
    rng, dtype = np.random.default_rng(11), np.dtype(request.param)
    owners = [Sequence(1, KV_HEADS, DIM, COUNT, dtype) for _ in range(2)]
    for owner in owners:
        kv = KVRows(COUNT, KV_HEADS, DIM, dtype)
        kv.table[:] = owner.addresses()
        keys, values = rng.standard_normal((2, COUNT, 64)).astype(np.float32)
        program = cpu.program(COUNT)
        program.write_kv(keys, values, 0, np.arange(COUNT), kv)
        program.run(COUNT)
    return owners, rng.standard_normal((COUNT, 64)).astype(np.float32) * 3, dtype


def attend(backend, history, scoring, rows):
    """Results [rows, 64] of (owner, position) pairs in one step."""
    owners, queries, dtype = history
    kv = KVRows(len(rows), KV_HEADS, DIM, dtype)
    kv.table[:] = [owners[owner].addresses() for owner, _ in rows]
    positions = np.array([position for _, position in rows], np.int64)
    out = np.full((len(rows), 64), np.nan, np.float32)
    program = backend.program(len(rows))
    here = np.ascontiguousarray(queries[positions])
    program.attend(here, HEADS, scoring, 0, positions, kv, out)
    program.run(len(rows))
    return out


@pytest.mark.parametrize("name", SCORINGS)
def test_every_scoring_matches_its_twin(cpu, twin, history, name):
    rows = [(0, p) for p in range(COUNT)]
    ours, theirs = (attend(backend, history, SCORINGS[name], rows) for backend in (cpu, twin))
    assert relative(ours, theirs) < 3e-6


@pytest.mark.parametrize("name", SCORINGS)
def test_a_row_does_not_depend_on_its_company_or_on_threads(history, name):
    """Bitwise: alone, in fours of one sequence, among others, on 1 to 3 threads."""
    scoring = SCORINGS[name]
    backends = [kernels.load("cpu", threads) for threads in (1, 2, 3)]
    alone = np.concatenate([attend(backends[0], history, scoring, [(0, p)]) for p in range(COUNT)])
    other = attend(backends[0], history, scoring, [(1, COUNT - 1)])
    for backend in backends:
        together = attend(backend, history, scoring, [(0, p) for p in range(COUNT)])
        assert np.array_equal(together, alone)
        shifted = attend(backend, history, scoring, [(0, p) for p in range(3, COUNT)])
        assert np.array_equal(shifted, alone[3:])
        mixed = [(0, 30), (0, 31), (1, COUNT - 1), (0, 32), *((0, p) for p in range(60, 71))]
        got = attend(backend, history, scoring, mixed)
        assert np.array_equal(got[2], other[0])
        assert np.array_equal(np.delete(got, 2, axis=0), alone[[30, 31, 32, *range(60, 71)]])
    for backend in backends:
        backend.close()


def test_windows_hide_what_is_before_them(cpu, history):
    """The result is bitwise the same whatever the hidden keys and values are."""
    owners, queries, dtype = history
    scoring, at = Scoring(0.2, window=20), 57
    before = attend(cpu, history, scoring, [(0, at)])
    owners[0].length = COUNT
    saved = owners[0].export()
    changed = Sequence(1, KV_HEADS, DIM, COUNT, dtype)

    def after(hidden):
        set_values(saved["values"], dtype, hidden)
        changed.restore(saved)
        return attend(cpu, ([changed], queries, dtype), scoring, [(0, at)])

    assert np.array_equal(after({range(at - 19): 5, range(at + 1, COUNT): 7}), before)
    assert not np.array_equal(after({range(at - 19, at - 18): 9}), before)


def set_values(saved, dtype, numbers):
    """Change the values of some positions, as they are saved; in q8 their codes."""
    for positions, number in numbers.items():
        if dtype != np.int8:
            saved[:, :, positions] = number
            continue
        for position in positions:
            codes = saved.view(q8_values(DIM))["codes"]
            codes[:, :, position // 16, position % 16] = number


@pytest.mark.parametrize("dim", [16, 64, 80])
def test_eight_bits_are_what_the_twin_stores_and_near_what_was_given(cpu, twin, dim):
    """Bitwise, in any order and company: a token's codes and scales are its own."""
    rng, count = np.random.default_rng(3), 37
    sizes = 10.0 ** rng.integers(-34, 5, (2, count, 1))
    width = -(-2 * dim // 64) * 64
    keys, values = (rng.standard_normal((2, count, width)) * sizes).astype(np.float32)
    keys[3], values[4] = 0, 0

    def stored(backend, steps):
        owner = Sequence(2, 2, dim, 48, np.dtype(np.int8))
        for step in steps:
            kv = KVRows(len(step), 2, dim, np.dtype(np.int8))
            kv.table[:] = owner.addresses()
            program = backend.program(len(step))
            program.write_kv(keys[step].copy(), values[step].copy(), 1, np.array(step), kv)
            program.run(len(step))
        owner.length = count
        return owner.export()

    whole = stored(twin, [list(range(count))])
    for backend in (cpu, twin):
        for steps in ([list(range(count))], [[i] for i in reversed(range(count))]):
            got = stored(backend, steps)
            assert np.array_equal(got["keys"], whole["keys"])
            assert np.array_equal(got["values"], whole["values"])
    blocks = whole["values"].view(q8_values(dim))[1]
    back = (blocks["codes"] * blocks["scales"][..., None]).reshape(2, -1, dim)[:, :count]
    given = values[:, : 2 * dim].reshape(count, 2, dim).transpose(1, 0, 2)
    bound = np.maximum(np.abs(given).max(axis=-1, keepdims=True) / 254 * 1.0001, 1e-30)
    assert (np.abs(back - given) <= bound).all()
    by_position = whole["keys"].view(q8_keys(dim))[1]
    back = by_position["codes"].transpose(0, 1, 3, 2) * by_position["scales"][..., None]
    given = keys[:, : 2 * dim].reshape(count, 2, dim).transpose(1, 0, 2)
    bound = np.maximum(np.abs(given).max(axis=-1, keepdims=True) / 254 * 1.0001, 1e-30)
    assert (np.abs(back.reshape(2, -1, dim)[:, :count] - given) <= bound).all()


def test_saved_eight_bits_are_checked_and_restored():
    filled = Sequence(1, 2, 16, 40, np.dtype(np.int8))
    filled.length = 20
    for array in filled._valid(20):
        array["codes"] = np.arange(-128, 128, dtype=np.int8).reshape(array["codes"].shape[3:])
        array["scales"] = 0.5
    saved = filled.export()
    assert saved["keys"].shape == saved["values"].shape == (1, 2, 2 * (16 * 16 + 64))
    again = Sequence(1, 2, 16, 40, np.dtype(np.int8))
    again.restore(saved)
    assert again.length == 20
    assert all(np.array_equal(again.export()[name], saved[name]) for name in saved)
    empty = Sequence(1, 2, 16, 40, np.dtype(np.int8))
    again.restore(empty.export())
    assert again.length == 0
    saved["keys"].view(q8_keys(16))["scales"][0, 1, 0, 3] = np.nan
    with pytest.raises(CorruptModel, match="not finite"):
        again.restore(saved)
    for wrong in (saved["values"][:, :, 1:], saved["values"].view(np.int8), None):
        with pytest.raises(CorruptModel, match="expected uint8"):
            again.restore({**empty.export(), "length": saved["length"], "keys": wrong})


def test_impossible_scorings_are_refused(cpu, history):
    for options in ({"window": 0}, {"soft_cap": 0.0}, {"soft_cap": float("nan")}):
        with pytest.raises(InvalidInput):
            Scoring(1.0, **options)
    with pytest.raises(InvalidInput, match="3 slopes for 4 heads"):
        attend(cpu, history, Scoring(1.0, slopes=(1.0, 1.0, 1.0)), [(0, 1)])
