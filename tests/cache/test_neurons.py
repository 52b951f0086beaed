"""The neuron cache: what it says is there is the file's, whatever fails or is let go meanwhile."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import plain_units
import pytest
import streamed
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_units import UnreliableReader

from flashllm.cache.neurons import Arrival, NeuronCache
from flashllm.errors import CorruptModel, EngineError, InvalidInput, ModelIOError, UnsupportedModel
from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.reader import UnitReader

LAYERS, UNITS, PAGE = 3, 24, 4096
GROUPS = [f"l{layer}" for layer in range(LAYERS)]


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_units.write(tmp_path_factory.mktemp("neurons") / "model", LAYERS, UNITS)


@pytest.fixture(scope="session")
def plain(written: Path) -> FlashModel:
    """Never written to."""
    return plain_units.read(written, LAYERS, UNITS)


@pytest.fixture
def unreliable(plain: FlashModel) -> Iterator[UnreliableReader]:
    """Its reader, which fails when told to."""
    with UnreliableReader(plain) as reader:
        yield reader


def cache_of(
    reader: UnitReader,
    slots: int = LAYERS * UNITS,
    window: int | None = None,
    gap: int = 0,
    threads: int = 3,
) -> NeuronCache:
    return NeuronCache(reader.model, GROUPS, slots * PAGE, window, reader, gap, threads)


def ids(*units: int) -> np.ndarray:
    return np.array(units, np.int64)


def check(
    cache: NeuronCache, model: FlashModel, layer: int, units: np.ndarray, got: Arrival
) -> None:
    """All the units are where the arrival says."""
    group = model.group(GROUPS[layer])
    for unit, address in zip(units.tolist(), got.addresses.tolist(), strict=True):
        assert plain_units.at_address(model, group, unit, address), f"unit {unit} of {group.name}"
    cache.check_integrity()


@pytest.mark.parametrize("gap", [0, PAGE, 3 * PAGE])
@pytest.mark.parametrize("io", ["auto", "direct", "pread", "mmap"])
def test_bytes_are_the_files(plain: FlashModel, io: str, gap: int) -> None:
    rng = np.random.default_rng(3)
    with UnitReader(plain, io) as reader:
        cache = cache_of(reader, UNITS + 10, 2, gap)
        for _ in range(12):
            cache.begin_step()
            for layer in range(LAYERS):
                units = np.flatnonzero(rng.random(UNITS) < 0.4)
                arrival = cache.bring(layer, units)
                arrival.wait()
                check(cache, plain, layer, units, arrival)
        assert cache.reads > 10
        cache.close()


def test_a_model_as_converted(tmp_path: Path) -> None:
    model = read_model(streamed.write(tmp_path / "model", codec="row", positions=True))
    groups = [f"layers.{i}.ffn" for i in range(streamed.LAYERS)]
    source = streamed.Streamed.read(tmp_path / "model")
    with UnitReader(model) as reader:
        cache = NeuronCache(model, groups, 1 << 20, None, reader, 0)
        for layer, name in enumerate(groups):
            units = np.arange(model.group(name).units)
            arrival = cache.bring(layer, units)
            arrival.wait()
            source.check(name, 0, arrival.addresses)
        cache.close()


def test_what_is_there_is_not_read_again(plain: FlashModel, unreliable: UnreliableReader) -> None:
    cache = cache_of(unreliable, window=1)
    first = cache.bring(1, ids(2, 3, 9))
    first.wait()
    assert cache.read_bytes == 3 * PAGE
    assert sorted(unreliable.asked) == [[2, 3], [9]]
    cache.begin_step()
    second = cache.bring(1, ids(3, 9, 23))
    assert second.addresses[:2].tolist() == first.addresses[1:].tolist()
    second.wait()
    assert unreliable.asked[2:] == [[23]]
    assert (cache.reads, cache.read_bytes, cache.used_slots) == (3, 4 * PAGE, 4)
    cache.begin_step()  # unit 2 leaves the window
    assert cache.used_slots == 3
    third = cache.bring(1, ids(2, 3))
    third.wait()
    assert cache.read_bytes == 5 * PAGE
    check(cache, plain, 1, ids(2, 3), third)
    cache.close()


def test_nothing_is_asked_for(unreliable: UnreliableReader) -> None:
    cache = cache_of(unreliable)
    arrival = cache.bring(0, ids())
    arrival.wait()
    assert (len(arrival.addresses), cache.read_bytes, cache.reads) == (0, 0, 0)
    cache.close()


def test_what_lies_between_is_read_but_not_there(
    plain: FlashModel, unreliable: UnreliableReader
) -> None:
    cache = cache_of(unreliable, gap=2 * PAGE)
    arrival = cache.bring(0, ids(1, 4, 8, 9))
    arrival.wait()
    assert cache.read_bytes == 6 * PAGE  # 1 to 4, and 8 with 9
    check(cache, plain, 0, ids(1, 4, 8, 9), arrival)
    assert sorted(unreliable.asked) == [[1, 4], [8, 9]]
    assert cache.used_slots == 4
    cache.begin_step()
    again = cache.bring(0, ids(2, 4))
    again.wait()
    assert cache.read_bytes == 7 * PAGE
    check(cache, plain, 0, ids(2, 4), again)
    assert unreliable.asked[2:] == [[2]]
    cache.close()


def test_reads_go_on_while_the_caller_works(
    plain: FlashModel, unreliable: UnreliableReader
) -> None:
    cache = cache_of(unreliable)
    cache.bring(0, ids(1, 2)).wait()
    cache.begin_step()
    unreliable.gate.clear()
    arrival = cache.bring(0, ids(0, 1, 2, 5))
    assert (arrival.addresses == 0).tolist() == [True, False, False, True]
    unreliable.gate.set()
    arrival.wait()
    arrival.wait()
    check(cache, plain, 0, ids(0, 1, 2, 5), arrival)
    cache.close()


@pytest.mark.parametrize("wait", [True, False])
def test_failed_reads_leave_their_units_absent(
    plain: FlashModel, unreliable: UnreliableReader, wait: bool
) -> None:
    cache = cache_of(unreliable, gap=PAGE)
    cache.bring(2, ids(6)).wait()
    cache.begin_step()
    unreliable.broken = {("l2", 9), ("l2", 14)}
    arrival = cache.bring(2, ids(0, 1, 6, 9, 11, 14, 20))
    if wait:
        for _ in range(2):
            with pytest.raises(ModelIOError, match="injected"):
                arrival.wait()
            # the run of 9 and 11 failed as a whole
            assert (arrival.addresses == 0).tolist() == [False] * 3 + [True] * 3 + [False]
            cache.check_integrity()
        there = [0, 1, 2, 6]
        check(cache, plain, 2, ids(0, 1, 6, 20), Arrival(arrival.addresses[there]))
    cache.begin_step()
    assert cache.used_slots == 4
    unreliable.broken = set()
    before = cache.read_bytes
    again = cache.bring(2, ids(0, 1, 6, 9, 11, 14, 20))
    again.wait()
    assert cache.read_bytes - before == 4 * PAGE
    check(cache, plain, 2, ids(0, 1, 6, 9, 11, 14, 20), again)
    if wait:
        with pytest.raises(ModelIOError):
            arrival.wait()
    cache.close()


def test_a_flipped_bit_is_told(plain: FlashModel) -> None:
    group = plain.group("l0")
    checksums = group.checksums.copy()
    checksums[5] ^= np.uint64(1)
    groups = plain.groups | {"l0": dataclasses.replace(group, checksums=checksums)}
    model = dataclasses.replace(plain, groups=groups)
    with UnitReader(model) as reader:
        cache = cache_of(reader)
        arrival = cache.bring(0, ids(2, 5))
        with pytest.raises(CorruptModel, match="unit 5 of 'l0'"):
            arrival.wait()
        assert cache.used_slots == 1
        cache.begin_step()
        between = cache_of(reader, gap=8 * PAGE).bring(0, ids(4, 6))
        between.wait()
        check(cache, model, 0, ids(4, 6), between)
        cache.close()


def test_slots_on_their_way_are_not_given_to_others(
    plain: FlashModel, unreliable: UnreliableReader
) -> None:
    cache = cache_of(unreliable, slots=UNITS)
    unreliable.gate.clear()
    first = cache.bring(0, np.arange(UNITS))
    opener = threading.Timer(0.1, unreliable.gate.set)
    opener.start()
    second = cache.bring(1, np.arange(UNITS))  # must wait for the first
    opener.join()
    first.wait()
    second.wait()
    check(cache, plain, 1, np.arange(UNITS), second)
    cache.close()


def test_against_a_set_of_what_is_there(plain: FlashModel, unreliable: UnreliableReader) -> None:
    """Random tokens and random failures: present is what was used in the window and did arrive."""
    subsets = st.frozensets(st.integers(0, UNITS - 1), max_size=10)
    steps = st.lists(
        st.tuples(
            st.lists(subsets, min_size=LAYERS, max_size=LAYERS),
            st.frozensets(st.tuples(st.sampled_from(GROUPS), st.integers(0, UNITS - 1))),
            st.booleans(),
        ),
        max_size=8,
    )

    @settings(max_examples=40)
    @given(steps, st.integers(0, 3), st.sampled_from([0, PAGE, 5 * PAGE]))
    def agree(script: list[tuple[list[frozenset[int]], frozenset, bool]], window, gap) -> None:  # type: ignore[no-untyped-def]
        cache = cache_of(unreliable, window=window, gap=gap)
        used: dict[tuple[int, int], int] = {}
        for step, (layers, broken, waits) in enumerate(script):
            cache.begin_step()
            used = {unit: last for unit, last in used.items() if last >= step - window}
            assert cache.used_slots == len(used)
            unreliable.broken = set(broken)
            for layer, wanted in enumerate(layers):
                units = ids(*sorted(wanted))
                unreliable.asked.clear()
                arrival = cache.bring(layer, units)
                arrival.join()
                asked = [unit for run in unreliable.asked for unit in run]
                assert sorted(asked) == sorted(u for u in wanted if (layer, u) not in used)
                failed = {
                    unit
                    for run in unreliable.asked
                    if any((GROUPS[layer], unit) in broken for unit in run)
                    for unit in run
                }
                used |= {(layer, unit): step for unit in wanted}
                used = {
                    key: last
                    for key, last in used.items()
                    if key[1] not in failed or key[0] != layer
                }
                if failed and waits:
                    with pytest.raises(ModelIOError):
                        arrival.wait()
                arrived = np.array([unit not in failed for unit in units.tolist()], bool)
                assert not arrival.addresses[~arrived].any()
                check(cache, plain, layer, units[arrived], Arrival(arrival.addresses[arrived]))
        cache.close()

    agree()


def test_a_right_guess_is_not_read_again(plain: FlashModel, unreliable: UnreliableReader) -> None:
    cache = cache_of(unreliable)
    cache.bring(1, ids(2)).wait()
    cache.begin_step()
    unreliable.gate.clear()
    cache.prefetch(1, ids(1, 2, 5, 8))
    arrival = cache.bring(1, ids(2, 5, 11))
    assert (arrival.addresses == 0).tolist() == [False, True, True]
    unreliable.gate.set()
    arrival.wait()
    check(cache, plain, 1, ids(2, 5, 11), arrival)
    assert sorted(unreliable.asked[1:]) == [[1], [5], [8], [11]]
    cache.close()


def test_a_guess_that_fails_harms_only_those_who_ask_for_it(
    plain: FlashModel, unreliable: UnreliableReader
) -> None:
    unreliable.broken = {("l0", 1)}
    for gate_open in (True, False):
        cache = cache_of(unreliable)
        for asked, fails in ((ids(0, 3), False), (ids(1, 3), True)):
            cache.begin_step()
            if not gate_open:
                unreliable.gate.clear()
            cache.prefetch(0, ids(1, 3))
            arrival = cache.bring(0, asked)
            unreliable.gate.set()
            if fails:
                with pytest.raises(ModelIOError):
                    arrival.wait()
                assert arrival.addresses[0] == 0
            else:
                arrival.wait()
                check(cache, plain, 0, asked, arrival)
            cache.check_integrity()
        cache.close()
    unreliable.broken = set()


@pytest.mark.parametrize("guessed", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("slots", [UNITS, UNITS + 3, 2 * UNITS])
def test_guesses_change_nothing_but_what_is_read(
    plain: FlashModel, unreliable: UnreliableReader, slots: int, guessed: float
) -> None:
    rng = np.random.default_rng(6)
    cache = cache_of(unreliable, slots, None, PAGE)
    for step in range(150):
        cache.begin_step()
        unreliable.broken = {("l1", 3), ("l2", 7)} if step % 5 == 0 else set()
        for layer in range(LAYERS):
            units = np.flatnonzero(rng.random(UNITS) < 0.5)
            cache.prefetch(layer, np.flatnonzero(rng.random(UNITS) < guessed))
            arrival = cache.bring(layer, units)
            try:
                arrival.wait()
            except ModelIOError:
                assert step % 5 == 0
                cache.check_integrity()
                continue
            check(cache, plain, layer, units, arrival)
    unreliable.broken = set()
    cache.close()


def test_many_steps_in_little_room(plain: FlashModel, unreliable: UnreliableReader) -> None:
    rng = np.random.default_rng(5)
    cache = cache_of(unreliable, UNITS + 3, None, PAGE, threads=16)
    probability = rng.random((LAYERS, UNITS)) ** 3
    for step in range(400):
        cache.begin_step()
        unreliable.broken = {("l1", 3)} if step % 7 == 0 else set()
        for layer in range(LAYERS):
            units = np.flatnonzero(rng.random(UNITS) < probability[layer])
            arrival = cache.bring(layer, units)
            try:
                arrival.wait()
            except ModelIOError:
                assert step % 7 == 0
                continue
            if step % 10 == 0:
                check(cache, plain, layer, units, arrival)
    cache.check_integrity()
    cache.reset()
    assert cache.used_slots == 0
    everything = np.arange(UNITS)
    arrival = cache.bring(0, everything)
    arrival.wait()
    check(cache, plain, 0, everything, arrival)
    cache.close()


def test_closing(plain: FlashModel) -> None:
    before = threading.active_count()
    with UnreliableReader(plain) as reader:
        cache = cache_of(reader, threads=16)
        reader.gate.clear()
        arrival = cache.bring(0, ids(1, 2, 5))
        threading.Timer(0.05, reader.gate.set).start()
        cache.close()  # waits for what is being read
        arrival.wait()
        cache.close()
        with pytest.raises(EngineError, match="closed"):
            cache.bring(1, ids(1))
    assert threading.active_count() <= before + 1  # the timer's


def test_a_reader_that_is_closed(plain: FlashModel) -> None:
    reader = UnitReader(plain)
    cache = cache_of(reader)
    reader.close()
    with pytest.raises(EngineError, match="reader is closed"):
        cache.bring(0, ids(1)).wait()
    cache.check_integrity()
    assert cache.used_slots == 0
    cache.close()


def test_room_and_slots(plain: FlashModel, unreliable: UnreliableReader) -> None:
    with pytest.raises(EngineError, match="23 slots do not hold a layer of 24"):
        NeuronCache(plain, GROUPS, UNITS * PAGE - 1, None, unreliable, 0)
    for room, slots in ((UNITS * PAGE, UNITS), (1 << 40, LAYERS * UNITS)):
        cache = NeuronCache(plain, GROUPS, room, None, unreliable, 0)
        assert cache.slots == slots
        cache.close()


def test_what_callers_get_wrong(plain: FlashModel, unreliable: UnreliableReader) -> None:
    for groups, window, gap in ((GROUPS, -1, 0), (GROUPS, None, -1), ([], None, 0)):
        with pytest.raises(InvalidInput):
            NeuronCache(plain, groups, 1 << 20, window, unreliable, gap)
    with pytest.raises(CorruptModel, match="no group"):
        NeuronCache(plain, ["l9"], 1 << 20, None, unreliable, 0)
    cache = cache_of(unreliable)
    for units in (ids(-1, 2), ids(UNITS), ids(3, 3), ids(4, 3), ids(1, 99, 3)):
        with pytest.raises(InvalidInput, match="units of 'l0'"):
            cache.bring(0, units)
    cache.check_integrity()
    assert cache.used_slots == 0
    cache.bring(0, ids(3)).wait()
    cache.close()


def test_units_of_different_sizes(plain: FlashModel, unreliable: UnreliableReader) -> None:
    wide = plain_units.Group("w", plain_units.FILE, (), *wide_index(), 4096)
    model = dataclasses.replace(plain, groups=plain.groups | {"w": wide})
    with pytest.raises(UnsupportedModel, match="'l0' are not of 8192 bytes"):
        NeuronCache(model, ["l0", "w"], 1 << 20, None, unreliable, 0)


def wide_index() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.full(4, 5000, np.int64)
    return plain_units.unit_offsets(lengths), lengths, np.zeros(4, np.uint64)
