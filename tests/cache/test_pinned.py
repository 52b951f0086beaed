"""Pinned units: whatever stays next, its bytes are those of the file, and little more is held."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed import FailingReader, Streamed

from flashllm.cache import pinned
from flashllm.cache.pinned import PinnedUnits
from flashllm.cache.policy import Residency
from flashllm.errors import Cancelled, ModelIOError
from flashllm.flash.prefetch import Prefetcher


class Held:
    """Pinned units, and where they said that each is."""

    def __init__(self, model: Streamed, prefetcher: Prefetcher) -> None:
        self.tables = {name: np.zeros(g.units, np.int64) for name, g in model.model.groups.items()}
        self.units = PinnedUnits(model.model, model.residency(0), self._place)
        self.progress: list[tuple[int, int]] = []
        self._model = model
        self._prefetcher = prefetcher

    def hold(self, residency: Residency) -> None:
        """Hold what a residency keeps."""
        self.progress = []
        self.units.hold(residency, self._prefetcher, lambda *at: self.progress.append(at))

    def check(self, residency: Residency) -> None:
        """What the residency keeps is there."""
        for span, count in residency.kept():
            table = self.tables[span.group][span.first : span.first + count]
            self._model.check(span.group, span.first, table)

    def _place(self, group: str, first: int, addresses: np.ndarray) -> None:
        self.tables[group][first : first + len(addresses)] = addresses


@pytest.fixture
def held(model: Streamed, prefetcher: Prefetcher) -> Held:
    return Held(model, prefetcher)


def test_any_residency_after_any_other(model: Streamed, prefetcher: Prefetcher) -> None:
    everything = model.residencies()

    @settings(max_examples=20)
    @given(st.lists(st.sampled_from(range(len(everything))), min_size=2, max_size=6))
    def holds(order: list[int]) -> None:
        held = Held(model, prefetcher)
        for which in order:
            held.hold(everything[which])
            held.check(everything[which])
            if held.progress:
                assert held.progress[-1][0] == held.progress[-1][1]
        held.units.close()

    holds()


def test_only_what_is_new_is_read(
    model: Streamed, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, more = model.residency(0.3), model.residency(0.6)
    held.hold(more)
    assert held.progress[-1] == (more.pinned_bytes, more.pinned_bytes)
    held.hold(some)
    assert held.progress == []
    held.hold(more)
    kept = zip(some.kept(), more.kept(), strict=True)
    new = sum(span.bytes_of(min(had, has), has) for (span, had), (_, has) in kept)
    assert held.progress[-1] == (new, new)


def test_a_change_holds_little_more_than_before_or_after(
    model: Streamed, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk more than the larger of both, and the bytes past the end of each buffer."""
    living: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
    sizes: dict[int, int] = {}
    peak = 0
    real = pinned.huge_buffer

    def counted(size: int) -> np.ndarray:
        nonlocal peak
        buffer = real(size)
        base = buffer.base
        assert isinstance(base, np.ndarray)
        living[id(base)], sizes[id(base)] = base, size
        peak = max(peak, sum(sizes[key] for key in list(living)))
        return buffer

    monkeypatch.setattr(pinned, "huge_buffer", counted)
    held.hold(model.residency(0.5))
    overhead = 64 * 64
    for share in (0.9, 0.0, 0.3, 0.1, 0.8):
        residency = model.residency(share)
        gc.collect()
        before = sum(sizes[key] for key in list(living))
        peak = 0
        held.hold(residency)
        assert peak <= max(before, residency.pinned_bytes) + pinned.CHUNK_BYTES + overhead


def test_a_failure_leaves_what_is_held_valid_and_another_try_works(
    model: Streamed, reader: FailingReader, held: Held
) -> None:
    some, more = model.residency(0.2), model.residency(0.8)
    held.hold(some)
    reader.broken = {"layers.3.ffn"}
    for _ in range(2):
        with pytest.raises(ModelIOError, match="injected"):
            held.hold(more)
        held.check(some)
    reader.broken = set()
    held.hold(more)
    held.check(more)


def test_progress_may_stop_it(model: Streamed, prefetcher: Prefetcher) -> None:
    held = Held(model, prefetcher)
    seen = 0

    def stop(done: int, total: int) -> None:
        nonlocal seen
        seen += 1
        if seen == 3:
            raise Cancelled("enough")

    everything = model.residencies()[0]
    with pytest.raises(Cancelled):
        held.units.hold(everything, prefetcher, stop)
    held.hold(everything)
    held.check(everything)
