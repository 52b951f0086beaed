"""Which units have slots: held to a slow twin, and to work that does not grow with the model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.cache.window import Window
from flashllm.errors import EngineError

LAYERS, UNITS = 3, 12


class Twin:
    """As the Window says it works: a list of (step, layer, unit) of last uses, oldest first."""

    def __init__(self, slots: int, window: int | None):
        self.slots, self.window, self.step = slots, window, 1
        self.kept: list[tuple[int, int, int]] = []

    def begin_step(self) -> None:
        self.step += 1
        if self.window is not None:
            self.kept = [use for use in self.kept if use[0] >= self.step - self.window]

    def present(self, layer: int) -> set[int]:
        return {unit for _, i, unit in self.kept if i == layer}

    def use(self, layer: int, units: list[int]) -> list[int]:
        """Returns those that were missing."""
        missing = [unit for unit in units if unit not in self.present(layer)]
        self.kept = [use for use in self.kept if not (use[1] == layer and use[2] in units)]
        self.kept = self.kept[max(0, len(self.kept) + len(units) - self.slots) :]
        self.kept += [(self.step, layer, unit) for unit in units]
        return missing

    def forget(self, layer: int, units: list[int]) -> None:
        self.kept = [use for use in self.kept if not (use[1] == layer and use[2] in units)]


def agree(window: Window, twin: Twin) -> None:
    """Both agree about what is there."""
    window.check_integrity()
    assert window.used == len(twin.kept)
    assert [window.present(layer).tolist() for layer in range(LAYERS)] == [
        sorted(twin.present(layer)) for layer in range(LAYERS)
    ]


subsets = st.lists(st.integers(0, UNITS - 1), unique=True).map(sorted)
steps = st.lists(
    st.lists(st.tuples(subsets, subsets), min_size=LAYERS, max_size=LAYERS), max_size=15
)


@settings(max_examples=40)
@given(steps, st.integers(UNITS, LAYERS * UNITS), st.none() | st.integers(0, 5))
def test_against_a_list_of_last_uses(
    script: list[list[tuple[list[int], list[int]]]], slots: int, window: int | None
) -> None:
    made, twin = Window([UNITS] * LAYERS, slots, window), Twin(slots, window)
    for step in script:
        for layer, (units, lost) in enumerate(step):
            places, new = made.use(layer, np.array(units, np.int64))
            assert len(set(places.tolist())) == len(units)
            assert all(0 <= place < slots for place in places)
            assert [units[i] for i in new] == twin.use(layer, units)
            agree(made, twin)
            if lost and lost[0] % 4 == 0:  # now and then, as after reads that failed
                made.forget(layer, np.array(lost, np.int64))
                twin.forget(layer, lost)
        made.begin_step()
        twin.begin_step()
        agree(made, twin)
    made.reset()
    made.check_integrity()
    assert made.used == 0


@settings(max_examples=40)
@given(steps, st.integers(UNITS, LAYERS * UNITS), st.none() | st.integers(0, 5))
def test_what_was_reserved_is_there_until_others_need_its_slot(
    script: list[list[tuple[list[int], list[int]]]], slots: int, window: int | None
) -> None:
    made = Window([UNITS] * LAYERS, slots, window)
    for step in script:
        for layer, (units, guess) in enumerate(step):
            before = set(made.present(layer).tolist())
            absent, places = made.reserve(layer, np.array(guess, np.int64))
            assert set(absent.tolist()) == set(guess) - before
            assert made.find(layer, absent).tolist() == places.tolist()
            made.check_integrity()
            after = set(made.present(layer).tolist())
            places, new = made.use(layer, np.array(units, np.int64))
            assert {units[i] for i in new} == set(units) - after
            assert made.find(layer, np.array(units, np.int64)).tolist() == places.tolist()
            made.check_integrity()
            if slots == LAYERS * UNITS:
                assert set(units) | set(guess) <= set(made.present(layer).tolist())
        made.begin_step()
        made.check_integrity()


def test_slots_of_guesses_are_given_up_by_reads_that_failed_meanwhile() -> None:
    """Room is made of what is on its way, which turns out not to arrive: units of this very use."""
    made = Window([4, 4], 4, None, lambda: made.forget(0, np.array([1, 2])))
    made.use(1, np.array([0]))
    made.reserve(0, np.array([0, 1, 2]))
    places, new = made.use(0, np.array([1, 2, 3]))
    made.check_integrity()
    assert new.tolist() == [0, 1, 2]  # 3 had a slot at no time, 1 and 2 none any more
    assert made.find(0, np.array([1, 2, 3])).tolist() == places.tolist()
    assert made.used == 4  # the fourth is that of a wrong guess


@pytest.mark.parametrize("window", [None, 0, 1, 4])
def test_many_steps(window: int | None) -> None:
    """Long enough for the queue of uses to be compacted, and for every bound to be met."""
    rng = np.random.default_rng(1)
    made, twin = Window([UNITS] * LAYERS, 20, window), Twin(20, window)
    for _ in range(300):
        for layer in range(LAYERS):
            units = np.flatnonzero(rng.random(UNITS) < rng.choice([0.1, 0.5, 0.9]))
            _, new = made.use(layer, units)
            assert units[new].tolist() == twin.use(layer, units.tolist())
        agree(made, twin)
        made.begin_step()
        twin.begin_step()


def test_a_step_of_several_tokens_is_as_long_as_they_are() -> None:
    made = Window([3], 3, 4)
    made.use(0, np.array([0]))  # at token 1
    made.begin_step(3)
    made.use(0, np.array([1]))  # at token 4
    made.begin_step(2)  # the first of which is token 5
    assert made.present(0).tolist() == [0, 1]
    made.use(0, np.array([2]))
    made.begin_step()
    assert made.present(0).tolist() == [1, 2]
    made.check_integrity()


passing_steps = st.lists(
    st.lists(st.tuples(subsets, st.integers(0, 1 << UNITS)), min_size=LAYERS, max_size=LAYERS),
    max_size=15,
)


@given(passing_steps, st.integers(UNITS, LAYERS * UNITS), st.none() | st.integers(0, 5))
def test_what_only_passes_is_the_first_to_go(
    script: list[list[tuple[list[int], int]]], slots: int, window: int | None
) -> None:
    """A unit that passes stays as long as it would have; all slots stay accounted for."""
    made = Window([UNITS] * LAYERS, slots, window)
    last: dict[tuple[int, int], int] = {}
    for step, layers in enumerate(script, 1):
        for layer, (units, bits) in enumerate(layers):
            keep = np.array([bits >> unit & 1 for unit in units], np.bool_)
            there = set(made.present(layer).tolist())
            places, new = made.use(layer, np.array(units, np.int64), keep)
            made.check_integrity()
            assert [units[i] for i in new] == [unit for unit in units if unit not in there]
            assert len(set(places.tolist())) == len(units)
            assert set(units) <= set(made.present(layer).tolist())
            least = 1 if window is None else max(1, step - window)
            for unit, stays in zip(units, keep, strict=True):
                if stays or unit not in there:
                    last[layer, unit] = step if stays else least
        made.begin_step()
        made.check_integrity()
        if slots == LAYERS * UNITS:
            if window is not None:
                last = {use: at for use, at in last.items() if at >= step + 1 - window}
            assert [set(made.present(layer).tolist()) for layer in range(LAYERS)] == [
                {unit for i, unit in last if i == layer} for layer in range(LAYERS)
            ]


def test_room_is_made_of_what_passed_before_what_was_used() -> None:
    settled: list[int] = []
    made = Window([4, 4], 4, None, lambda: settled.append(1))
    made.use(0, np.array([0, 1]))
    made.begin_step()
    made.use(0, np.array([2, 3]), np.array([False, True]))
    made.use(1, np.array([0]))
    assert settled == [1]  # unit 2 may still be on its way
    assert made.present(0).tolist() == [0, 1, 3]
    made.begin_step()
    made.use(0, np.array([0, 2]), np.array([False, True]))  # unit 0 is the oldest, but in use
    assert made.present(0).tolist() == [0, 2, 3]
    made.begin_step()
    made.use(1, np.array([1]))
    assert made.present(0).tolist() == [2, 3]
    made.check_integrity()


def test_the_window_counts_steps() -> None:
    for window in range(4):
        made = Window([2], 2, window)
        made.use(0, np.array([1]))
        for _ in range(window):
            made.begin_step()
            assert made.used == 1
        made.begin_step()
        assert made.used == 0


def test_work_does_not_grow_with_the_model() -> None:
    """100,000 units, of which a step uses 10: neither they nor the slots are looked through."""
    rng = np.random.default_rng(2)
    for window in (None, 3):
        for slots in (100_000, 150_000):
            made = Window([100_000] * 2, slots, window)
            made.use(0, np.arange(100_000))
            made.use(1, np.arange(100_000))
            for _ in range(100):
                looked, used = made.looked, made.used
                made.begin_step()
                for layer in range(2):
                    made.use(layer, np.sort(rng.choice(100_000, 10, replace=False)))
                let_go = max(0, used - made.used)
                assert made.looked - looked < 1000 + let_go
            made.check_integrity()


def test_the_queue_stays_as_short_as_there_are_slots() -> None:
    made = Window([50, 50], 60, None)
    units = np.arange(0, 50, 2)
    looked = []
    for _ in range(1000):
        before = made.looked
        for layer in range(2):
            made.use(layer, units)
        looked.append(made.looked - before)
        made.begin_step()
    assert sum(looked) / len(looked) < 4 * 50
    made.check_integrity()


def test_what_is_used_now_is_settled_before_it_makes_room() -> None:
    settled: list[int] = []
    made = Window([4, 4, 4], 6, None, lambda: settled.append(made.used))
    every = np.arange(4)
    made.use(0, every)
    made.use(1, every[:2])
    assert not settled
    made.use(2, every[:2])  # over those of layer 0, used in this step
    assert settled == [6]
    made.begin_step()
    made.use(0, every[:1])
    made.use(1, every)
    assert settled == [6]


def test_what_is_forgotten_while_room_is_made() -> None:
    def settle() -> None:
        made.forget(0, np.array([1, 3]))

    made = Window([4, 4], 6, None, settle)
    made.use(0, np.arange(4))
    slots, new = made.use(1, np.arange(4))
    assert len(set(slots.tolist())) == len(new) == 4
    made.check_integrity()
    assert made.present(1).tolist() == [0, 1, 2, 3]
    assert len(made.present(0)) <= 2


def test_what_callers_get_wrong() -> None:
    with pytest.raises(EngineError, match="3 slots do not hold a layer of 4"):
        Window([2, 4], 3, None)
    with pytest.raises(EngineError, match="slots"):
        Window([], 3, None)
    made = Window([4, 4], 4, 2)
    made.use(1, np.array([0]))
    with pytest.raises(EngineError, match="layer 1 is used twice"):
        made.use(1, np.array([1]))
    made.begin_step()
    made.use(1, np.array([1]))
