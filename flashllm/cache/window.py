"""Which units have which slots: those that the last tokens used, as long as there is room."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import EngineError
from flashllm.kernels import slots as native

Integers = NDArray[np.int64]


@dataclasses.dataclass(slots=True)
class _Use:
    """Units that one layer used at one token. Those before `at` are done with, and so is every one
    that has been used again since.

    stamp: which use, see Window. brought: the token that queued them, which is later if they count
    as used long ago.
    """

    stamp: int
    ids: Integers
    brought: int
    at: int = 0


class Window:
    """Slots given to units. Nothing moves; a slot is given back, and to another unit.

    A unit used at token t keeps its slot for tokens t + 1 .. t + window, or, if `window` is None,
    for as long as no other needs it. If slots are short, the units used longest ago give theirs
    up, so that the window shrinks. Tokens computed in one step use units at the last of them.

    All steps cost as much as what they use and what is let go, however many units there are: uses
    are queued, oldest first, and a unit's stamp tells whether a queued use is its last: twice the
    step, and 1 more if it was not only reserved.
    """

    def __init__(
        self,
        units: Sequence[int],
        slots: int,
        window: int | None,
        settle: Callable[[], None] = lambda: None,
    ):
        """units: how many each layer has. settle() is called before slots that were used in the
        present step are given to others. Raises EngineError if a layer has more units than slots.
        """
        if not units or max(units) > slots:
            raise EngineError(f"{slots} slots do not hold a layer of {max(units, default=0)} units")
        self.slots = slots
        self._window = window
        self._settle = settle
        self._begins = [0, *np.cumsum(units).tolist()]
        self.reset()

    def reset(self) -> None:
        """Take all slots back."""
        total = self._begins[-1]
        # By unit, those of a layer after those of the one before: its slot or -1, and the stamp
        # of its last use or 0.
        self._slot = np.full(total, -1, np.int32)
        self._stamp = np.zeros(total, np.int32)
        self._step = self._oldest = 1  # the last token begun, and the first of the window
        self._layer_step = [0] * (len(self._begins) - 1)
        # The lowest on top: pages of slots that are never used are never touched.
        self._free = np.arange(self.slots - 1, -1, -1, dtype=np.int32)
        self._frees = self.slots
        self._uses: deque[_Use] = deque()
        self._entries = 0
        self._looked = 0
        self._settled = False

    @property
    def used(self) -> int:
        """How many units have slots."""
        return self.slots - self._frees

    @property
    def looked(self) -> int:
        """At how many entries all calls so far have looked, those of the units asked for too."""
        return self._looked

    def present(self, layer: int) -> Integers:
        """The units of a layer that have slots: int64, ascending. It looks at all of the layer."""
        begin, end = self._begins[layer : layer + 2]
        return np.flatnonzero(self._slot[begin:end] >= 0)

    def begin_step(self, tokens: int = 1) -> None:
        """The next token begins, or a few: what the last `window` ones have not used is let go."""
        if self._window is not None:
            self._oldest = max(1, self._step + 1 - self._window)
        self._step += tokens
        while self._uses and self._uses[0].stamp < 2 * self._oldest:
            self._let_go_oldest(self.slots)

    def use(
        self, layer: int, units: Integers, keep: NDArray[np.bool_] | None = None
    ) -> tuple[Integers, Integers]:
        """The slots of a layer's `units` (none twice, within the layer), given now if need be.

        keep: of each unit, whether this counts as a use. Those for which it does not are as old as
        they were before; new ones are the first to go. None: all count.

        Returns the slots, int64 [units], and which of them are new, as positions in that array.
        They are right until the next use. Raises EngineError for a layer used twice in a step,
        whose second use could take slots from its first.
        """
        if self._layer_step[layer] == self._step:
            raise EngineError(f"layer {layer} is used twice in a step; begin the next step first")
        self._layer_step[layer] = self._step
        return self._give(units + self._begins[layer], 2 * self._step + 1, keep)

    def reserve(self, layer: int, units: Integers) -> tuple[Integers, Integers]:
        """Before `use`: give slots to those of a layer's `units` that have none, as if used.

        Returns those units and their slots, int64 both.
        """
        absent = units[self.find(layer, units) < 0]
        slots, _ = self._give(absent + self._begins[layer], 2 * self._step, None)
        return absent, slots

    def find(self, layer: int, units: Integers) -> Integers:
        """The slots of a layer's units, -1 of those that have none: int64 [units]."""
        slots: Integers = self._slot[units + self._begins[layer]].astype(np.int64)
        return slots

    def _give(
        self, ids: Integers, stamp: int, keep: NDArray[np.bool_] | None
    ) -> tuple[Integers, Integers]:
        """As `use`."""
        slots: Integers = np.empty(len(ids), np.int64)
        passing = None if keep is None or keep.all() else np.flatnonzero(~keep)
        before = None if passing is None else self._stamp[ids[passing]]
        # Stamps the new ones too, so that none of them makes room.
        absent = native.mark(self._slot, self._stamp, ids, stamp, slots)
        self._looked += len(ids)
        crowded = self._frees < absent
        while self._frees < absent:
            self._make_room(absent - self._frees)
            if self._settled:  # what did not arrive has lost its slot, units of `ids` perhaps
                self._settled = False
                absent = native.mark(self._slot, self._stamp, ids, stamp, slots)
        if passing is not None and before is not None:
            before[slots[passing] < 0] = 0
        new: Integers = np.empty(absent, np.int64)
        self._frees = native.fill(self._slot, ids, slots, self._free, self._frees, new)
        if passing is not None and before is not None:
            self._pass(ids[passing], before, crowded)
            ids = ids[keep]
        if len(ids):
            self._uses.append(_Use(stamp, ids, self._step))
            self._entries += len(ids)
        if self._entries > 2 * self.slots:
            self._compact()
        return slots, new

    def forget(self, layer: int, units: Integers) -> None:
        """Take back the slots of a layer's units, of those that have one."""
        ids = units + self._begins[layer]
        self._let_go(ids[self._slot[ids] >= 0])

    def check_integrity(self) -> None:
        """Raise EngineError unless every slot is free or a unit's, and every unit's use is queued.

        It looks at everything.
        """
        present = np.flatnonzero(self._slot >= 0)
        every = np.concatenate([self._free[: self._frees], self._slot[present]])
        if not np.array_equal(np.sort(every), np.arange(self.slots)):
            raise EngineError(
                f"slots are lost or shared: {self._frees} free, {len(present)} taken "
                f"of {self.slots}"
            )
        if not np.array_equal(present, np.flatnonzero(self._stamp)):
            raise EngineError("stamps and slots disagree about which units are present")
        stamps = self._stamp[present]
        steps = stamps // 2
        if len(present) and not self._oldest <= steps.min() <= steps.max() <= self._step:
            raise EngineError(f"a unit is present that was not used from token {self._oldest} on")
        queued_steps = [use.stamp // 2 for use in self._uses]
        if queued_steps != sorted(queued_steps) or self._entries != sum(
            len(use.ids) for use in self._uses
        ):
            raise EngineError("the queue of uses is out of order or miscounted")
        last = [
            use.ids[use.at :][self._stamp[use.ids[use.at :]] == use.stamp] for use in self._uses
        ]
        queued = np.concatenate([np.zeros(0, np.int64), *last])
        if not np.array_equal(np.unique(queued), present):
            raise EngineError("units are present whose last use is not queued")

    def _pass(self, ids: Integers, before: NDArray[np.int32], crowded: bool) -> None:
        """Have units that passed be as old as `before`, where 0 is new: the oldest of all.

        crowded: room was made, which has taken the oldest ones off the queue.
        """
        oldest = self._uses[0].stamp | 1 if self._uses else 2 * self._step + 1
        self._stamp[ids] = before
        first = ids[before <= (oldest if crowded else 0)]
        if len(first):
            self._stamp[first] = 2 * self._oldest
            self._uses.appendleft(_Use(2 * self._oldest, first, self._step))
            self._entries += len(first)

    def _make_room(self, wanted: int) -> None:
        """Look at some of the oldest uses, and let units go for which they were the last."""
        if self._uses[0].brought == self._step:
            self._settle()
            self._settled = True
        self._let_go_oldest(wanted)

    def _let_go_oldest(self, wanted: int) -> None:
        """Let units go for which the oldest use was the last, so many at most."""
        use = self._uses[0]
        before = use.at
        use.at, self._frees = native.let_go(
            self._slot, self._stamp, use.ids, use.at, use.stamp, wanted, self._free, self._frees
        )
        self._looked += use.at - before
        if use.at == len(use.ids):
            self._uses.popleft()
            self._entries -= use.at

    def _let_go(self, ids: Integers) -> None:
        self._free[self._frees : self._frees + len(ids)] = self._slot[ids]
        self._frees += len(ids)
        self._slot[ids] = -1
        self._stamp[ids] = 0

    def _compact(self) -> None:
        """Drop what is stale in the queue, which would grow for ever where nothing is let go."""
        uses, self._uses = self._uses, deque()
        self._looked += self._entries
        self._entries = 0
        for use in uses:
            ids = use.ids[use.at :]
            ids = ids[self._stamp[ids] == use.stamp]
            if len(ids):
                self._uses.append(_Use(use.stamp, ids, use.brought))
                self._entries += len(ids)
