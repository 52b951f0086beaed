"""Units: at every moment of their use all of a stage is where the table says, whatever stays."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import streamed
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed import Streamed

from flashllm.cache.policy import LOOKUP_SLOTS, Residency
from flashllm.cache.units import Units
from flashllm.errors import Cancelled, CorruptModel
from flashllm.flash.format import FlashModel

Folder = Callable[..., Path]


def nothing(done: int, total: int) -> None:
    """Hear no progress."""


def use(units: Units, model: Streamed, stages: int | None = None) -> None:
    """A token: rows looked up, then the stages in order, each held against the file."""
    for table in model.scan.tables:
        rows = [0, table.units - 1, table.units // 2]
        units.look_up(table.group, set(rows))
        for row in rows:
            model.check(table.group, row, units.row_table(table.group)[row : row + 1])
    for stage, spans in enumerate(model.scan.stages[:stages]):
        units.fetch(stage)
        for span in spans:
            model.check(span.group, span.first, units.table(span.group, span.first, span.units))
        units.check_integrity()
        units.release()


def opened(model: FlashModel, residency: Residency, io: str) -> Units:
    units = Units(model, residency, io)
    units.load()
    return units


@pytest.mark.parametrize("io", ["auto", "direct", "pread", "mmap"])
@pytest.mark.parametrize(
    "options",
    [{}, {"tied": True}, {"codec": "row", "dtype": "q8"}, {"positions": True, "tied": True}],
    ids=str,
)
def test_all_of_a_stage_is_there_while_it_is_used(
    folder: Folder, options: dict[str, object], io: str
) -> None:
    model = Streamed.read(folder(**options))
    for residency in model.residencies():
        units = opened(model.model, residency, io)
        for _ in range(2):
            use(units, model)
        units.close()


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"codec": "row", "dtype": "q8"}], ids=str)
def test_what_stays_may_change_between_stages(folder: Folder, options: dict[str, object]) -> None:
    """As it does while a reply goes on."""
    model = Streamed.read(folder(**options))
    choices = model.residencies()

    @settings(max_examples=10)
    @given(st.lists(st.tuples(st.sampled_from(choices), st.integers(0, 6)), max_size=5))
    def holds(steps: list[tuple[Residency, int]]) -> None:
        units = opened(model.model, choices[-1], "pread")
        for residency, stages in steps:
            use(units, model, stages)
            units.resize(residency, nothing)
            assert units.residency == residency
        use(units, model)
        units.close()

    holds()


def test_watchers_hear_of_every_change(model: Streamed) -> None:
    """Addresses worked out from a table are worked out anew."""
    units = opened(model.model, model.residency(0), "pread")
    group = "layers.2.ffn"
    table = units.table(group, 0, model.model.group(group).units)
    seen = np.zeros_like(table)

    def follow(first: int, count: int) -> None:
        seen[first : first + count] = table[first : first + count]

    units.watch(group, follow)
    for residency in model.residencies():
        units.resize(residency, nothing)
        assert np.array_equal(seen, table)
        for stage in range(len(model.scan.stages)):
            units.fetch(stage)
            if stage == 2:
                assert np.array_equal(seen, table)
            units.release()
    units.close()


def test_traffic_tells_what_was_used_read_and_waited_for(model: Streamed) -> None:
    residency = model.residency(0.3)
    units = opened(model.model, residency, "pread")
    assert units.traffic.hit_rate == 1
    for done in range(1, 4):
        for stage in range(len(model.scan.stages)):
            units.fetch(stage)
            units.release()
        traffic = units.traffic
        assert traffic.read_bytes == done * residency.streamed_bytes
        assert traffic.used_bytes == done * sum(span.nbytes for span in model.scan.spans)
        assert traffic.hit_rate == pytest.approx(1 - traffic.read_bytes / traffic.used_bytes)
    assert traffic.wait_s > 0
    before = traffic
    units.resize(model.residencies()[0], nothing)
    use(units, model)
    assert (units.traffic - before).read_bytes <= residency.streamed_bytes  # what was read ahead
    assert (units.traffic - before).wait_s == 0
    units.close()


def test_rows_looked_up_at_once_are_there_together(model: Streamed) -> None:
    units = opened(model.model, model.residency(0), "pread")
    rows = list(range(3, 3 + LOOKUP_SLOTS))
    units.look_up("embed", rows)
    for row in rows:
        model.check("embed", row, units.row_table("embed")[row : row + 1])
    units.close()


@pytest.mark.parametrize(
    ("before", "after"), list(itertools.permutations([0.0, 0.4, 0.9, None], 2))
)
def test_a_change_that_fails_is_undone_by_the_next_use(
    tmp_path: Path, before: float | None, after: float | None
) -> None:
    """Shares of the weights; None is everything."""
    model = Streamed.read(streamed.write(tmp_path / "model"))
    had, wanted = (
        model.residencies()[0] if share is None else model.residency(share)
        for share in (before, after)
    )
    units = opened(model.model, had, "pread")
    broken = [("layers.4.ffn", 1), ("layers.1.ffn", 2), ("layers.1.attn", 3)]
    for group, unit in broken:
        streamed.damage(model, group, unit)
    try:
        units.resize(wanted, nothing)
    except CorruptModel:
        assert units.residency == had
        with pytest.raises(CorruptModel):
            use(units, model)
    for group, unit in broken:
        streamed.damage(model, group, unit)
    use(units, model)
    units.close()


def test_a_change_that_is_stopped_is_undone_by_the_next_use(model: Streamed) -> None:
    units = opened(model.model, model.residency(0), "pread")
    had = units.residency

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        units.resize(model.residencies()[0], stop)
    use(units, model)
    assert units.residency == had
    units.close()


def test_units_that_cannot_be_read_at_first_leave_nothing_open(tmp_path: Path) -> None:
    model = Streamed.read(streamed.write(tmp_path / "model"))
    streamed.damage(model, "layers.0.attn", 0)
    threads = threading.active_count()
    with pytest.raises(CorruptModel, match=r"unit 0 of 'layers\.0\.attn'"):
        opened(model.model, model.residencies()[0], "pread")
    assert threading.active_count() <= threads
