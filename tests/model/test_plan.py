"""The plan's arithmetic and words, of a shape and sizes given as numbers."""

from __future__ import annotations

import datetime
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.cache.policy import LEAST_AHEAD_BYTES, pinned_scan
from flashllm.disk_curve import DiskCurve, Point
from flashllm.model.config import ModelConfig
from flashllm.model.memory import (
    FIXED_BYTES,
    KVDtype,
    budget_for,
    kv_bytes,
    scratch_bytes,
    weights_room,
)
from flashllm.model.plan import Needs, Plan, Sizes, plan
from flashllm.model.scan import scan_of
from flashllm.model.specs import AttentionSpec, FFNSpec, LayerKind, NormSpec, RopeSpec
from flashllm.read_speed import MemoryRate, ReadSpeed

# Llama-2-7B's shape. Its keys and values take 512 KiB a token.
CONFIG = ModelConfig(
    family="llama",
    hidden_size=4096,
    vocab_size=32000,
    context_length=8192,
    norm=NormSpec("rms", 1e-5),
    attention=AttentionSpec(heads=32, kv_heads=32, head_dim=128, scale=128**-0.5),
    ffn=FFNSpec(11008, "silu"),
    kinds=(LayerKind(RopeSpec(10000.0, 128, "half")),),
    layers=(0,) * 32,
    tied_head=False,
)
NEURONS = 11008
GB = 10**9
UNIT = 160 << 10


def units(nbytes: int) -> list[int]:
    """Where equal units of a group of about so many bytes begin."""
    return list(range(0, nbytes + UNIT, UNIT))


GROUPS = {"embed": units(139 << 20), "output": units(139 << 20)}
GROUPS |= {f"layers.{i}.attn": units(36 << 20) for i in range(32)}
GROUPS |= {f"layers.{i}.ffn": units(73 << 20) for i in range(32)}
SCAN = scan_of(CONFIG, GROUPS)
SIZES = Sizes(weights=SCAN.nbytes - 5000, stored=SCAN.nbytes + 9, fetched=5 * GB, to_store=7)
SCRATCH = scratch_bytes(CONFIG, NEURONS, 4096)


def make(budget: int, n_ctx: int = 4096, kv_dtype: KVDtype = "f16") -> Plan:
    needs = Needs(CONFIG, SCAN, NEURONS, kv_dtype)
    return plan("seven", needs, SIZES, ("q4m", "q8"), budget=budget, n_ctx=n_ctx)


def test_the_sum_of_a_model_that_stays_in_memory() -> None:
    made = make(12 * GB)
    assert made.kv_bytes == kv_bytes(CONFIG, 4096, "f16") == 4096 * 512 * 1024
    assert made.pinned_bytes == made.resident_bytes == SCAN.nbytes
    assert made.total_bytes == budget_for(SCAN.nbytes, made.kv_bytes, SCRATCH)
    assert made.disk_bytes == 5 * GB + 7
    assert made.fits
    assert not made.streams
    assert made.largest_context == made.n_ctx


def test_what_does_not_stay_is_streamed() -> None:
    made = make(4 * GB)
    assert made.fits
    assert made.streams
    assert made.total_bytes <= 4 * GB
    assert 4 * GB - made.total_bytes < 40 << 20  # no memory is left unused
    embedding = units(139 << 20)[-1]
    assert made.used_bytes == SCAN.nbytes - embedding
    assert made.pinned_bytes + made.streamed_bytes == made.used_bytes + UNIT  # of a token's row
    assert 1 << 20 < made.slot_bytes < 3 << 20


@settings(max_examples=40)
@given(st.integers(0, 14 * GB), st.sampled_from([1, 100, 4096, 8192]))
def test_the_plan_is_what_happens(budget: int, n_ctx: int) -> None:
    """The same residency as a loader finds with the same bytes."""
    made = make(budget, n_ctx)
    if made.fits:
        room = weights_room(budget, made.kv_bytes, made.scratch_bytes)
        residency = pinned_scan(SCAN, room)
        assert made.pinned_bytes == residency.pinned_bytes
        assert made.ring_bytes == residency.passing_bytes
        assert made.total_bytes <= budget
        assert made.smallest_budget <= made.total_bytes
    else:
        assert made.total_bytes == made.smallest_budget > budget


def test_a_budget_of_exactly_what_is_needed_fits() -> None:
    least = make(12 * GB).smallest_budget
    assert make(least).fits
    assert not make(least - 1).fits
    assert make(least - 1).largest_context == 4096 - 16


@pytest.mark.parametrize("n_ctx", [1, 100, 8192])
def test_the_largest_context_fits_and_one_more_does_not(n_ctx: int) -> None:
    budget = make(12 * GB, n_ctx).smallest_budget
    most = make(budget, 8192).largest_context
    # Keys and values are reserved by 16 positions, and so are cosines by 256.
    assert n_ctx <= most < n_ctx + 16
    assert make(budget, most).fits
    assert most == 8192 or not make(budget, most + 1).fits


def test_the_floor_is_attention_or_a_head_piece_and_what_lies_beside_weights() -> None:
    """A layer of this shape has 109 MiB, of which the feed-forward is used in pieces."""
    made = make(12 * GB, 16)
    attention = 36 << 20
    beside = FIXED_BYTES + scratch_bytes(CONFIG, NEURONS, 16) + kv_bytes(CONFIG, 16, "f16")
    assert attention + LEAST_AHEAD_BYTES < made.smallest_budget - beside < 1.4 * attention
    assert make(GB // 10, 16).largest_context == 0


def test_keys_and_values_of_f32_take_twice_the_room() -> None:
    f16, f32, q8 = (make(12 * GB, kv_dtype=dtype) for dtype in ("f16", "f32", "q8"))
    assert (f32.kv_dtype, f32.kv_bytes) == ("f32", 2 * f16.kv_bytes)
    assert f32.total_bytes == f16.total_bytes + f16.kv_bytes
    assert q8.kv_bytes == f16.kv_bytes // 2 + f16.kv_bytes // CONFIG.attention.head_dim * 2


def test_verdicts_say_what_to_do() -> None:
    assert make(12 * GB).verdict == "fits in memory, needs 6.38 GB of the 12 GB allowed"
    assert make(4 * GB).verdict.startswith("runs in 4 GB, ")
    assert "streaming 2." in make(4 * GB).verdict
    assert "a context of " in make(2 * GB).verdict
    assert "at least 2.47 GB of the 2 GB" in make(2 * GB).verdict
    assert "smaller model" in make(GB // 10).verdict
    for budget in (12 * GB, 4 * GB, 2 * GB, GB // 10):
        made = make(budget)
        assert made.verdict.startswith("does not fit") is not made.fits
        assert "\n" not in made.summary
        assert made.name in made.summary


# ---------------------------------------------------------------- speed

NOON = datetime.datetime(2025, 1, 1, 12, tzinfo=datetime.UTC)


def speed(disk: float, memory: float, io: str = "direct") -> ReadSpeed:
    curve = DiskCurve(NOON, (Point(io, 1 << 20, 8, disk),))
    return ReadSpeed(curve, (MemoryRate(1, memory / 2), MemoryRate(2, memory)))


def test_the_slower_of_disk_and_memory_decides() -> None:
    made = make(4 * GB)
    slow_disk = made.tok_s_at(GB, 1e15)
    assert slow_disk == pytest.approx(GB / made.streamed_bytes)
    slow_memory = made.tok_s_at(1e15, GB)
    assert slow_memory == pytest.approx(0.95 * GB / made.used_bytes)
    assert made.tok_s_at(GB, GB) == slow_memory < slow_disk
    assert make(12 * GB).tok_s_at(1, GB) == pytest.approx(slow_memory)  # nothing is streamed


@pytest.mark.parametrize("budget", [3 * GB, 4 * GB, 12 * GB])
def test_a_range_of_speeds_holds_what_is_expected(budget: int) -> None:
    made = make(budget)
    for disk, memory in itertools.product([0.3 * GB, 2 * GB], [10 * GB, 40 * GB]):
        for threads in (1, 2):
            found = made.with_speed(speed(disk, memory), threads)
            assert found.tok_s is not None
            least, most = found.tok_s
            assert least < found.tok_s_at(disk, memory * threads / 2) < most < 4 * least
            assert "tok/s" in found.verdict


def test_what_was_not_measured_is_said() -> None:
    no_disk = ReadSpeed(None, (MemoryRate(1, 1e10),))
    for unknown in (no_disk, speed(GB, GB, "pread")):
        found = make(4 * GB).with_speed(unknown, 1)
        assert found.tok_s is None
        assert "disk" in found.warnings[-1]
        assert make(12 * GB).with_speed(unknown, 1).tok_s is not None  # nothing is streamed
