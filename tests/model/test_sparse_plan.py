"""The plan of running sparse: its window, what it reads and computes, and whether that happens."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest
import sparse_model
from hypothesis import given
from hypothesis import strategies as st
from sparse_model import LAYER_BYTES, LAYERS, N_CTX, SPARSITY

from flashllm.cache.policy import Scan, Span, pinned_scan
from flashllm.cache.read_cost import DEFAULT_GAP, READERS
from flashllm.convert.planning import plan_model
from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import UnsupportedModel
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions, Sparse
from flashllm.model.plan import READS_AT_ONCE, Plan
from flashllm.model.sparse_plan import Firing, fitting_window, sparse_plan, unit_share
from flashllm.read_speed import MemoryRate, ReadSpeed

FIRING = Firing("predictor", None, 1, 3, SPARSITY)
UNIT = 4096


def scan(layers: int = 16, units: int = 1000) -> Scan:
    """Each layer's attention, then its neurons, which are rare."""
    stages = []
    for i in range(layers):
        stages += [(Span(f"layers.{i}.attn", 0, (0, 10 * UNIT)),)]
        stages += [(Span(f"layers.{i}.ffn", 0, tuple(range(0, UNIT * (units + 1), UNIT))),)]
    embed = Span("embed", 0, tuple(range(0, UNIT * 33, UNIT)))
    return Scan((*stages, (embed,)), (embed,), frozenset(range(1, 2 * layers, 2)))


@given(st.lists(st.floats(0, 1), min_size=33, max_size=33), st.floats(0, 1.2))
def test_the_window_is_the_longest_that_fits(shares: list[float], room: float) -> None:
    resident = sorted(shares)
    nbytes = int(room * 1e9)
    kept = fitting_window(resident, 10**9, nbytes, FIRING)
    assert kept == 0 or unit_share(resident[kept], 1) * 1e9 <= nbytes
    assert kept == 32 or unit_share(resident[kept + 1], 1) * 1e9 > nbytes
    asked = dataclasses.replace(FIRING, window=3)
    assert fitting_window(resident, 10**9, nbytes, asked) == min(3, kept)


def test_units_of_several_neurons_are_needed_more_often() -> None:
    assert unit_share(0.02, 1) == pytest.approx(0.02)
    assert unit_share(0.02, 5) == pytest.approx(1 - 0.98**5)
    assert [unit_share(share, 7) for share in (0, 1)] == [0, 1]


def test_what_a_token_reads_and_computes() -> None:
    neurons = 16 * 1000 * UNIT
    residency = pinned_scan(scan(), int(0.95 * neurons))
    found = sparse_plan(FIRING, residency)
    k = found.window_tokens
    assert k == 1
    assert (1 - 0.5 ** (k + 1)) * neurons <= found.window_bytes < (1 - 0.5 ** (k + 2)) * neurons
    assert found.new_bytes == int(0.5 ** (k + 1) * neurons)
    assert found.compute_bytes == neurons // 2
    assert (found.unit_bytes, found.gap_bytes, found.readers) == (UNIT, DEFAULT_GAP, READERS)
    assert found.ranks == (64, 64)
    exact = sparse_plan(dataclasses.replace(FIRING, mode="gate"), residency)
    assert exact.compute_bytes == neurons // 2 + neurons // 3
    assert (exact.ranks, exact.recall) == (None, None)
    all_stay = sparse_plan(FIRING, pinned_scan(scan(), None))
    assert (all_stay.window_bytes, all_stay.new_bytes, all_stay.window_tokens) == (0, 0, None)
    unknown = sparse_plan(dataclasses.replace(FIRING, figures=None), residency)
    assert (unknown.new_bytes, unknown.active, unknown.window_tokens) == (None, None, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sparse_model.write(tmp_path_factory.mktemp("sparse"))


def planned(model: Path, sparse: Sparse, layers: float, window: int | None = None) -> Plan:
    budget = sparse_model.budget(model, sparse, layers)
    return plan_model(model, LoadOptions(budget, N_CTX, sparse=sparse, window=window))


@pytest.mark.parametrize("sparse", ["predictor", "gate", "oracle"])
def test_the_plan_is_what_happens(model: Path, sparse: Sparse) -> None:
    """Within a few bytes for what is looked up: the loader finds the same room for weights."""
    made = planned(model, sparse, 3.0)
    decoder = load_decoder(model, LoadOptions(made.budget, N_CTX, 1, sparse=sparse))
    resident, streamed = decoder.resident_bytes, decoder.streamed_bytes
    decoder.close()
    assert made.resident_bytes == resident
    assert made.fits
    assert made.sparse is not None
    assert made.sparse.new_bytes is not None
    assert 0 <= made.streamed_bytes - made.sparse.new_bytes - streamed <= 1 << 20
    assert made.total_bytes <= made.budget


def test_the_speed_is_that_of_reading_units_and_of_computing_what_fires(model: Path) -> None:
    made = planned(model, "predictor", 2.0)
    assert made.sparse is not None
    points = (
        Point("direct", 4096, READS_AT_ONCE, 1e8),
        Point("direct", 4096, READERS, 2e8),
        Point("direct", 1 << 20, READS_AT_ONCE, 1e9),
        Point("direct", 1 << 20, READERS, 1e9),
    )
    curve = DiskCurve(datetime.datetime.now(datetime.UTC), points)
    speed = ReadSpeed(curve, (MemoryRate(1, 1e15),))
    told = made.with_speed(speed, 1)
    assert told.tok_s is not None
    assert told.sparse is not None
    assert told.sparse.gap_bytes > 0
    new = made.sparse.new_bytes
    assert new == int(0.5 ** (1 + (made.sparse.window_tokens or 0)) * LAYERS * LAYER_BYTES)
    other = (made.streamed_bytes - new) / curve.rate(made.slot_bytes, READS_AT_ONCE)
    assert told.tok_s[0] == pytest.approx(1 / (1.25 * (new / 2e8 + other)), rel=1e-3)
    shorter = planned(model, "predictor", 2.0, window=0)
    slower = shorter.with_speed(speed, 1).tok_s
    assert slower is not None
    assert slower[0] <= told.tok_s[0]
    assert made.used_bytes < plan_model(model, LoadOptions(made.budget, N_CTX)).used_bytes


def test_a_model_that_was_not_calibrated_or_cannot_run_sparse(tmp_path: Path) -> None:
    raw = sparse_model.write(tmp_path, calibrated=False)
    made = planned(raw, "gate", 2.0)
    assert made.sparse is not None
    assert made.sparse.new_bytes is None
    speed = ReadSpeed(None, (MemoryRate(1, 1e10),))
    assert "flashllm calibrate" in made.with_speed(speed, 1).warnings[-1]
    with pytest.raises(UnsupportedModel, match="calibrate"):
        plan_model(raw, LoadOptions(n_ctx=N_CTX, sparse="predictor"))
