"""The arena: slots are taken once, lie apart, and are missed when lost."""

from __future__ import annotations

import pytest

from flashllm.cache.arena import Arena
from flashllm.errors import EngineError


def test_slots_are_taken_once_and_lie_apart() -> None:
    arena = Arena(5, 4096)
    taken = [arena.take() for _ in range(5)]
    assert sorted(taken) == list(range(5))
    assert arena.free == 0
    with pytest.raises(EngineError, match="all 5 slots"):
        arena.take()
    for slot in taken:
        view = arena.view(slot, 4096)
        assert view.ctypes.data == arena.address(slot)
        assert arena.address(slot) % 4096 == 0
        view[:] = slot + 1
    for slot in taken:
        assert (arena.view(slot, 4096) == slot + 1).all()
    arena.give(3)
    assert arena.take() == 3
    assert arena.nbytes == 5 * 4096


def test_a_lost_slot_and_one_given_twice_are_noticed() -> None:
    arena = Arena(3, 64)
    mine, other = arena.take(), arena.take()
    arena.check_integrity({mine, other})
    for wrong in (set(), {mine}, {mine, other, 2}, {mine, other, 3}):
        with pytest.raises(EngineError, match="lost or shared"):
            arena.check_integrity(wrong)
    arena.give(mine)
    arena.give(mine)
    with pytest.raises(EngineError, match="lost or shared"):
        arena.check_integrity({other})


def test_a_closed_arena_has_no_slots() -> None:
    arena = Arena(3, 4096)
    arena.close()
    assert arena.nbytes == arena.free == 0
    with pytest.raises(EngineError):
        arena.take()
    Arena(0, 4096).check_integrity(set())
