"""Neurons of sparse feed-forward networks in memory: those that the last tokens used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.window import Window
from flashllm.errors import EngineError, InvalidInput, UnsupportedModel
from flashllm.flash.format import FlashModel, Group
from flashllm.flash.reader import UnitReader
from flashllm.flash.scatter import THREADS, ScatteredRead, ScatteredReader
from flashllm.kernels.memory import OVERREAD, huge_buffer
from flashllm.kernels.slots import are_ascending, clear_common, places


@dataclasses.dataclass(eq=False)
class _Flight:
    """Units of a layer on their way; error: what went wrong, once they have landed."""

    layer: int
    units: NDArray[np.int64]
    read: ScatteredRead
    error: BaseException | None = None


class Arrival:
    """Units asked for, some of which may be on their way.

    addresses: int64 [units asked for], 0 for those on their way; complete after `wait`, and right
    until the next `bring` or `begin_step`.
    """

    def __init__(
        self,
        addresses: NDArray[np.int64],
        finish: Callable[[], BaseException | None] | None = None,
    ):
        """finish() waits, completes `addresses`, and returns what went wrong; for the cache."""
        self.addresses = addresses
        self._finish = finish
        self._error: BaseException | None = None

    def wait(self) -> None:
        """Return when all units are there and verified.

        Raises CorruptModel, ModelIOError, each time: then units whose reads failed are absent,
        their addresses 0, and asking for them again reads them again.
        """
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """As wait, without raising."""
        if self._finish is not None:
            finish, self._finish = self._finish, None
            self._error = finish()


class NeuronCache:
    """Units of the layers' feed-forward networks, in slots of one buffer. One thread may call it.

    Which of them stay is the Window's choice. The paper (LLM in a flash, arXiv 2312.11514, 3.3)
    keeps a layer's neurons dense in its part of a matrix, and so copies the last ones over those it
    deletes; here kernels find units by address, so that to delete one is to give its slot back, all
    layers share the slots, and nothing ever moves.

    Besides the slots it takes 8 bytes for each unit of the model, and 20 for each slot.
    """

    def __init__(
        self,
        model: FlashModel,
        groups: Sequence[str],
        room: int,
        window: int | None,
        reader: UnitReader,
        gap: int,
        threads: int = THREADS,
    ):
        """groups: layer i's network is groups[i]. room: bytes of all slots.

        window: how many tokens long a unit stays that none uses again, None for as long as there
        is room. gap: most bytes read in vain to join two reads. Raises EngineError if a layer does
        not fit the room, UnsupportedModel for units of different sizes, InvalidInput, CorruptModel.
        """
        if gap < 0 or (window is not None and window < 0):
            raise InvalidInput(f"a window of {window} tokens and a gap of {gap} bytes: negative")
        if not groups:
            raise InvalidInput(f"{model.path}: no groups to keep neurons of")
        self._groups = [model.group(name) for name in groups]
        slot_bytes = _slot_bytes(model, self._groups)
        units = [group.units for group in self._groups]
        self._slot_bytes = slot_bytes
        self._gap = gap
        self._window = Window(units, min(room // slot_bytes, sum(units)), window, self._join_all)
        self._buffer = huge_buffer(self.slots * slot_bytes + OVERREAD)
        self._memory, self._address = self._buffer.data, int(self._buffer.ctypes.data)
        self._flights: list[_Flight] = []
        self._prefetched: dict[int, _Flight] = {}
        self._reads = self._read_bytes = 0
        self._reader = ScatteredReader(reader, threads)
        self._closed = False

    @property
    def slots(self) -> int:
        """How many units it can hold."""
        return self._window.slots

    @property
    def used_slots(self) -> int:
        """How many it holds, those on their way included."""
        return self._window.used

    @property
    def reads(self) -> int:
        """Reads made so far: of what has been waited for."""
        return self._reads

    @property
    def read_bytes(self) -> int:
        """Bytes of those reads, over-read and padding included."""
        return self._read_bytes

    def begin_step(self, tokens: int = 1) -> None:
        """A token begins, or a few that are computed together: what left the window is let go."""
        self._join_all()
        self._prefetched.clear()
        self._window.begin_step(tokens)

    def prefetch(self, layer: int, units: NDArray[np.int64]) -> None:
        """Begin to read those of a layer's units (as in `bring`) that are missing: a guess at what
        the layer's next `bring` will ask for, which says what became of it.

        They count as used. At most once for each layer and step, before `bring`. Raises
        EngineError, InvalidInput for units that are not the layer's.
        """
        self._check(layer, units)
        absent, slots = self._window.reserve(layer, units)
        if len(absent):
            self._prefetched[layer] = self._take_off(layer, absent, slots)

    def bring(
        self, layer: int, units: NDArray[np.int64], keep: NDArray[np.bool_] | None = None
    ) -> Arrival:
        """Have a layer's `units` (int64, ascending, none twice) in memory, and mark them as used.

        keep: of each, whether to mark it; those that are not stay no longer than they would have,
        and if they were not there they are the first to go. None: all.

        Reads of those that are missing have begun when it returns. Once for each layer and step.
        Raises EngineError, InvalidInput for units that are not the layer's.
        """
        self._check(layer, units)
        guess = self._prefetched.pop(layer, None)
        if guess is not None and guess.read.is_over:
            self._land(guess)
        slots, new = self._window.use(layer, units, keep)
        addresses: NDArray[np.int64] = np.empty(len(units), np.int64)
        places(slots, self._slot_bytes, self._address, addresses)
        flights: list[_Flight] = []
        in_flight = guess is not None and guess in self._flights
        if guess is not None and in_flight and clear_common(units, guess.units, addresses):
            flights.append(guess)
        if len(new):
            flights.append(self._take_off(layer, units[new], slots[new]))
            addresses[new] = 0
        if not flights:
            return Arrival(addresses)

        def finish() -> BaseException | None:
            for flight in flights:
                self._land(flight)
            coming = np.flatnonzero(addresses == 0)
            found = self._window.find(layer, units[coming])
            there = found >= 0
            addresses[coming[there]] = found[there] * self._slot_bytes + self._address
            # A failure among units that were guessed, but not asked for, is nobody's.
            errors = [flight.error for flight in flights if flight.error]
            return errors[0] if errors and not there.all() else None

        return Arrival(addresses, finish)

    def reset(self) -> None:
        """Forget every unit, when what is on its way has arrived."""
        self._join_all()
        self._window.reset()

    def check_integrity(self) -> None:
        """Raise EngineError unless every slot is free or one unit's, and all agree about it."""
        self._window.check_integrity()

    def close(self) -> None:
        """Finish what is being read, and give the memory back; addresses are wrong afterwards."""
        self._closed = True
        self._reader.close()
        self._join_all()
        self._window.reset()
        self._memory, self._buffer = memoryview(b""), huge_buffer(0)

    def _check(self, layer: int, units: NDArray[np.int64]) -> None:
        if self._closed:
            raise EngineError("the neuron cache is closed; open the model again")
        group = self._groups[layer]
        if not are_ascending(units, group.units):
            raise InvalidInput(
                f"units of {group.name!r} are 0 to {group.units - 1}, in ascending order, "
                f"not {units}"
            )

    def _take_off(self, layer: int, units: NDArray[np.int64], slots: NDArray[np.int64]) -> _Flight:
        """Begin to read units into their slots."""
        begins = slots * self._slot_bytes
        try:
            read = self._reader.start(self._groups[layer], units, self._memory, begins, self._gap)
        except BaseException:
            self._window.forget(layer, units)
            raise
        flight = _Flight(layer, units, read)
        self._flights.append(flight)
        return flight

    def _land(self, flight: _Flight) -> None:
        """Wait for it; units whose reads failed lose their slots."""
        if flight not in self._flights:
            return
        failures = flight.read.join()
        self._flights.remove(flight)
        self._reads += flight.read.reads
        self._read_bytes += flight.read.nbytes
        for begin, end, error in failures:
            self._window.forget(flight.layer, flight.units[begin:end])
            flight.error = flight.error or error

    def _join_all(self) -> None:
        """Wait for everything on its way."""
        for flight in self._flights.copy():
            self._land(flight)


def _slot_bytes(model: FlashModel, groups: Sequence[Group]) -> int:
    """What a unit takes with its padding, the same for all but the last of each group."""
    sizes = [np.diff(group.offsets) for group in groups]
    slot_bytes = max((int(size.max()) for size in sizes), default=0)
    for group, size in zip(groups, sizes, strict=True):
        if (size[:-1] != slot_bytes).any():
            raise UnsupportedModel(
                f"{model.path}: units of {group.name!r} are not of {slot_bytes} bytes, as others "
                "are; convert the model again"
            )
    return slot_bytes
