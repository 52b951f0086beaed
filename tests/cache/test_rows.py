"""Rows looked up: those asked for are there, those used last are kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamed import FailingReader, Streamed

from flashllm.cache.rows import RowUnits
from flashllm.errors import CorruptModel, EngineError, ModelIOError


def bring(rows: RowUnits, reader: FailingReader, *units: int) -> None:
    """Look units up."""
    rows.bring(np.array(units, np.int64), reader)


def check(model: Streamed, rows: RowUnits, *units: int) -> None:
    """They are there."""
    for unit in units:
        model.check("embed", unit, rows.table[unit : unit + 1])


def test_those_used_longest_ago_make_room(model: Streamed, reader: FailingReader) -> None:
    rows = RowUnits(model.model.group("embed"))
    rows.reset(4)
    bring(rows, reader, 1, 2, 3, 4)
    bring(rows, reader, 1)
    bring(rows, reader, 9, 8)  # in place of 2 and 3
    check(model, rows, 1, 4, 8, 9)
    assert not rows.table[[2, 3]].any()
    before = rows.read_bytes
    bring(rows, reader, 4, 1, 8, 9)
    assert rows.read_bytes == before
    rows.close()


def test_what_is_asked_for_now_never_makes_room(model: Streamed, reader: FailingReader) -> None:
    rows = RowUnits(model.model.group("embed"))
    rows.reset(3)
    bring(rows, reader, 1, 2, 3)
    bring(rows, reader, 1, 4, 5)  # 1 was used longest ago
    check(model, rows, 1, 4, 5)
    with pytest.raises(EngineError, match="4 units"):
        bring(rows, reader, 1, 6, 7, 8)
    rows.check_integrity()
    bring(rows, reader, 6, 7, 8)
    check(model, rows, 6, 7, 8)
    rows.close()


def test_pinned_units_take_no_slots_and_stay(model: Streamed, reader: FailingReader) -> None:
    rows = RowUnits(model.model.group("embed"))
    rows.reset(2)
    rows.pin(3, np.array([111, 222], np.int64))
    bring(rows, reader, 3, 4, 5, 6)
    assert rows.table[3:5].tolist() == [111, 222]
    check(model, rows, 5, 6)
    rows.reset(2)
    assert not rows.table.any()
    rows.close()


def test_errors_leave_it_usable(model: Streamed, reader: FailingReader) -> None:
    rows = RowUnits(model.model.group("embed"))
    rows.reset(3)
    bring(rows, reader, 1, 2)
    reader.broken = {"embed"}
    for _ in range(5):
        with pytest.raises(ModelIOError):
            bring(rows, reader, 1, 7, 8)
        rows.check_integrity()
    check(model, rows, 1)
    assert not rows.table[[7, 8]].any()
    reader.broken = set()
    bring(rows, reader, 1, 7, 8)
    check(model, rows, 1, 7, 8)
    rows.close()


def test_a_flipped_bit_is_told(model: Streamed, reader: FailingReader) -> None:
    group = model.model.group("embed")
    checksums = group.checksums.copy()
    checksums[5] ^= 1
    rows = RowUnits(dataclasses.replace(group, checksums=checksums))
    rows.reset(3)
    with pytest.raises(CorruptModel, match="unit 5 of 'embed'"):
        bring(rows, reader, 4, 5)
    assert not rows.table.any()
    rows.check_integrity()
    rows.close()


def test_against_a_list_ordered_by_last_use(model: Streamed, reader: FailingReader) -> None:
    """The twin: a list, the unit used longest ago first."""

    @given(st.data(), st.integers(1, 6))
    def agree(data: st.DataObject, slots: int) -> None:
        rows = RowUnits(model.model.group("embed"))
        rows.reset(slots)
        kept: list[int] = []
        asked = st.lists(st.integers(0, 12), min_size=1, max_size=slots, unique=True)
        for units in data.draw(st.lists(asked, max_size=12)):
            bring(rows, reader, *units)
            present = [unit for unit in units if unit in kept]
            new = [unit for unit in units if unit not in kept]
            kept = [unit for unit in kept if unit not in present] + present + new
            kept = kept[-slots:]
            assert set(np.flatnonzero(rows.table).tolist()) == set(kept)
            check(model, rows, *kept)
            rows.check_integrity()
        rows.close()

    agree()
