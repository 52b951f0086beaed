"""The ring: whatever is asked of it, a stage fetched is right, and no slot is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import streamed
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from streamed import LAYERS, FailingReader, Streamed

from flashllm.cache.policy import Extent, Residency
from flashllm.cache.ring import Ring
from flashllm.errors import CorruptModel, EngineError, ModelIOError
from flashllm.flash.prefetch import Prefetcher


class Watched:
    """A ring, and where it said that units are."""

    def __init__(self, model: Streamed, residency: Residency, prefetcher: Prefetcher) -> None:
        self.tables = {name: np.zeros(g.units, np.int64) for name, g in model.model.groups.items()}
        self.residency = residency
        self._model = model
        self.ring = Ring(model.model, residency, prefetcher, self._place)

    def _place(self, extent: Extent, address: int) -> None:
        offsets = self._model.model.group(extent.group).offsets
        for unit in range(extent.first, extent.first + extent.count):
            self.tables[extent.group][unit] = address + offsets[unit] - offsets[extent.first]

    def check(self, stage: int) -> None:
        """What of a stage does not stay is where the ring says."""
        for span, count in streamed.streamed_units(self.residency, stage):
            first, end = span.first + count, span.first + span.units
            self._model.check(span.group, first, self.tables[span.group][first:end])

    def pass_over(self, stage: int) -> None:
        """Use a stage."""
        self.ring.fetch(stage)
        self.check(stage)
        self.ring.check_integrity()
        self.ring.release()
        self.ring.check_integrity()


def rings(model: Streamed, prefetcher: Prefetcher) -> list[Watched]:
    """One for each residency that streams."""
    return [
        Watched(model, residency, prefetcher)
        for residency in model.residencies()
        if residency.slots
    ]


def stages_of(model: Streamed, group: str) -> list[int]:
    """The stages in which units of a group are used."""
    stages = enumerate(model.scan.stages)
    return [i for i, stage in stages if group in {span.group for span in stage}]


def layer_stages_end(model: Streamed) -> int:
    """Where the head's stages begin."""
    return stages_of(model, f"layers.{LAYERS - 1}.ffn")[-1] + 1


def test_every_stage_of_several_tokens_is_read_once_for_each(
    model: Streamed, prefetcher: Prefetcher
) -> None:
    made = rings(model, prefetcher)
    assert len(made) >= 4
    for watched in made:
        for done in range(1, 4):
            for stage in range(len(model.scan.stages)):
                watched.pass_over(stage)
            assert watched.ring.read_bytes == done * watched.residency.streamed_bytes
        watched.ring.close()


def test_the_head_is_not_read_where_it_is_not_expected(
    model: Streamed, prefetcher: Prefetcher
) -> None:
    for watched in rings(model, prefetcher):
        order = range(layer_stages_end(model))
        watched.ring.expect(order)
        layers = [watched.residency.extents(stage) for stage in order]
        size = sum(extent.nbytes for extents in layers for extent in extents)
        for done in range(1, 3):
            for stage in order:
                watched.pass_over(stage)
            assert watched.ring.read_bytes == done * size
        watched.ring.expect(range(len(watched.residency.scan.stages)))
        for stage in range(len(model.scan.stages)):
            watched.pass_over(stage)
        watched.ring.close()


def test_stages_out_of_order_are_right_all_the_same(
    model: Streamed, prefetcher: Prefetcher
) -> None:
    order = np.random.default_rng(2).integers(0, len(model.scan.stages), 30).tolist()
    for watched in rings(model, prefetcher):
        for stage in order:
            watched.pass_over(stage)
        watched.ring.close()


def test_an_error_frees_every_slot_and_the_next_fetch_works(
    model: Streamed, reader: FailingReader, prefetcher: Prefetcher
) -> None:
    for watched in rings(model, prefetcher):
        bad = next(i for i in stages_of(model, "layers.2.ffn") if watched.residency.extents(i))
        watched.pass_over(0)
        reader.broken = {"layers.2.ffn"}
        watched.ring.drop()
        for stage in range(bad):
            watched.pass_over(stage)
        for _ in range(2):
            with pytest.raises(ModelIOError, match="injected"):
                watched.ring.fetch(bad)
            watched.ring.check_integrity()
        watched.pass_over(bad - 1)
        reader.broken = set()
        watched.ring.drop()
        for stage in (*range(bad, len(model.scan.stages)), 0):
            watched.pass_over(stage)
        watched.ring.close()


def test_a_flipped_bit_is_told_and_what_was_read_before_it_is_not_used(tmp_path: Path) -> None:
    model = Streamed.read(streamed.write(tmp_path / "model"))
    group = "layers.1.ffn"
    with FailingReader(model.model) as reader, Prefetcher(reader, 3) as prefetcher:
        watched = Watched(model, model.residency(0.0), prefetcher)
        last = model.model.group(group).units - 1
        bad = stages_of(model, group)[-1]
        streamed.damage(model, group, last)
        for stage in range(bad):
            watched.pass_over(stage)
        with pytest.raises(CorruptModel, match=f"unit {last} of '{group}'"):
            watched.ring.fetch(bad)
        watched.ring.check_integrity()
        streamed.damage(model, group, last)
        watched.pass_over(bad)
        watched.ring.close()


def test_a_second_stage_is_refused_while_one_is_in_use(
    model: Streamed, prefetcher: Prefetcher
) -> None:
    watched = Watched(model, model.residency(0.0), prefetcher)
    watched.ring.fetch(0)
    with pytest.raises(EngineError, match="before the one in use"):
        watched.ring.fetch(1)
    watched.check(0)
    watched.ring.release()
    watched.pass_over(1)
    watched.ring.close()


class AnyUse(RuleBasedStateMachine):
    """Fetches in any order, cancelled passes, heads expected or not, disks that fail and recover.

    The plain model of it: a stage fetched is there until it is released; nothing else matters.
    Whether a fetch fails may depend on how far the readers were, and so no rule has a precondition.
    """

    def __init__(self, model: Streamed) -> None:
        super().__init__()
        self.model = model
        self.reader = FailingReader(model.model)
        self.prefetcher = Prefetcher(self.reader, 3)
        self.held: int | None = None
        self.last = 0
        self.suspects: set[str] = set()  # groups of which a read that failed may be under way

    @initialize(share=st.floats(0, 0.7))
    def open(self, share: float) -> None:
        self.watched = Watched(self.model, self.model.residency(share), self.prefetcher)

    @rule(stage=st.integers(0, 60))
    def fetch_any(self, stage: int) -> None:
        self._fetch(stage)

    @rule()
    def fetch_next(self) -> None:
        self._fetch(self.last + 1)

    @rule()
    def release(self) -> None:
        self.watched.ring.release()
        self.held = None

    @rule()
    def drop(self) -> None:
        self.watched.ring.drop()
        self.held, self.suspects = None, set(self.reader.broken)

    @rule(expected=st.booleans())
    def expect_head(self, expected: bool) -> None:
        last = len(self.model.scan.stages) if expected else layer_stages_end(self.model)
        self.watched.ring.expect(range(last))

    @rule(layer=st.integers(0, LAYERS - 1))
    def break_disk(self, layer: int) -> None:
        self.reader.broken = {f"layers.{layer}.ffn"}
        self.suspects |= self.reader.broken

    @rule()
    def repair_disk(self) -> None:
        self.reader.broken = set()

    @invariant()
    def what_is_fetched_is_there_and_no_slot_is_lost(self) -> None:
        self.watched.ring.check_integrity()
        if self.held is not None:
            self.watched.check(self.held)

    def teardown(self) -> None:
        self.watched.ring.close()
        self.prefetcher.close()
        self.reader.close()

    def _fetch(self, stage: int) -> None:
        if self.held is not None:
            self.release()
        stage %= len(self.model.scan.stages)
        try:
            self.watched.ring.fetch(stage)
            self.held = stage
        except ModelIOError:
            assert self.suspects & {e.group for e in self.watched.residency.extents(stage)}
            self.suspects = set(self.reader.broken)
        self.last = stage


def test_any_use(model: Streamed) -> None:
    run_state_machine_as_test(
        lambda: AnyUse(model), settings=settings(max_examples=40, stateful_step_count=40)
    )
