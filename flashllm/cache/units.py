"""Units in memory: those that stay, those that pass through, and where each of them is now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.brought import Brought, Coming, InPlace
from flashllm.cache.gate_rows import GateRows
from flashllm.cache.neurons import NeuronCache
from flashllm.cache.pinned import PinnedUnits, Progress
from flashllm.cache.policy import Extent, Residency
from flashllm.cache.ring import Ring
from flashllm.cache.rows import RowUnits
from flashllm.flash.format import FlashModel, Group
from flashllm.flash.parts import FFNPart
from flashllm.flash.prefetch import Prefetcher
from flashllm.flash.reader import UnitReader
from flashllm.kernels.soundness import is_sound

OnChange = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What steps have asked of the weights so far.

    used_bytes: of units that steps used, padding included. read_bytes: read from flash for them, of
    which neuron_bytes for units that `bring` brought. wait_s: seconds that steps waited for reads.
    """

    used_bytes: int = 0
    read_bytes: int = 0
    wait_s: float = 0.0
    neuron_bytes: int = 0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(
            self.used_bytes - before.used_bytes,
            self.read_bytes - before.read_bytes,
            self.wait_s - before.wait_s,
            self.neuron_bytes - before.neuron_bytes,
        )

    @property
    def hit_rate(self) -> float:
        """The share of the bytes used that were in memory already."""
        return max(0.0, 1 - self.read_bytes / self.used_bytes) if self.used_bytes else 1.0


class Units:
    """Where every unit of a model is. One thread at a time may call it.

    A stage is used between `fetch` and `release`, a row right after `look_up`. A `table` is what
    kernels are given: its entries are right meanwhile, and change whenever a stage is fetched.

    residency: what stays. io: how files are read, "direct", "pread" or "mmap". fallback: why not as
    asked, in a sentence, or None.
    """

    def __init__(
        self,
        model: FlashModel,
        residency: Residency,
        io: str = "auto",
        *,
        window: int | None = None,
        gap: int = 0,
    ):
        """Nothing is read yet: see `load`.

        window, gap: of the NeuronCache that holds units of rare stages.
        """
        self.residency = residency
        self.io = io
        self.fallback: str | None = None
        self._model = model
        self._io = io
        self._window = window
        self._gap = gap
        self._order: Sequence[int] = range(len(residency.scan.stages))
        self._tables = {
            name: np.zeros(group.units, np.int64) for name, group in model.groups.items()
        }
        self._watchers: dict[str, list[OnChange]] = {}
        self._rows = {
            table.group: RowUnits(model.group(table.group)) for table in residency.scan.tables
        }
        self._stage_bytes = [sum(span.nbytes for span in stage) for stage in residency.scan.stages]
        self._pinned = PinnedUnits(model, residency, self._put)
        self._reader: UnitReader | None = None
        self._prefetcher: Prefetcher | None = None
        self._ring: Ring | None = None
        self._neurons: NeuronCache | None = None
        self._gate_rows: list[GateRows] = []
        self._layer_of = {group: i for i, group in enumerate(residency.scan.rare_groups)}
        self._unit_bytes = {group: _padded_sizes(model.groups[group]) for group in self._layer_of}
        self._used_bytes = self._read_bytes = self._neuron_bytes = 0
        self._wait_s = 0.0
        self._arranged = False

    def load(self, on_progress: Progress = lambda done, total: None) -> None:
        """Read and verify the units that stay, and begin to read those that pass.

        on_progress(bytes read, bytes in all). Raises CorruptModel, ModelIOError, InvalidInput.
        """
        try:
            self._arrange(self.residency, on_progress)
        except BaseException:
            self.close()
            raise

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, without padding."""
        return self._model.unit_bytes

    @property
    def traffic(self) -> Traffic:
        """What steps have asked of the weights so far."""
        neurons = self._neuron_bytes + (self._neurons.read_bytes if self._neurons else 0)
        read = self._read_bytes + sum(rows.read_bytes for rows in self._rows.values())
        read += neurons + (self._ring.read_bytes if self._ring else 0)
        return Traffic(self._used_bytes, read, self._wait_s, neurons)

    def table(self, group: str, first: int, count: int) -> NDArray[np.int64]:
        """The addresses of units first .. first+count-1 of a group: int64 [count], live."""
        return self._tables[group][first : first + count]

    def row_table(self, group: str) -> NDArray[np.int64]:
        """The addresses of a group's units for look-ups: int64 [units], live."""
        return self._rows[group].table

    def gate_rows(self, group: str, part: FFNPart, row_bytes: int) -> NDArray[np.int64]:
        """The addresses of the first row of every neuron of codec `row`, kept in memory by `load`.

        Beside the residency: the caller counts that memory.
        """
        rows = GateRows(self._model.group(group), part, row_bytes)
        self._gate_rows.append(rows)
        return rows.table

    def watch(self, group: str, on_change: OnChange) -> None:
        """Call on_change(first, count) now, and whenever those entries of the group's table may
        have changed.
        """
        self._watchers.setdefault(group, []).append(on_change)
        on_change(0, len(self._tables[group]))

    def fetch(self, stage: int) -> None:
        """Wait until all of a stage is in memory. Raises CorruptModel, ModelIOError."""
        self._arrange_again()
        self._used_bytes += self._stage_bytes[stage]
        if self._ring is not None:
            start = time.perf_counter()
            self._ring.fetch(stage)
            for span in self.residency.scan.stages[stage]:
                self._tell(span.group, span.first, span.units)
            self._wait_s += time.perf_counter() - start

    def release(self) -> None:
        """The stage fetched last is not used any more."""
        if self._ring is not None:
            self._ring.release()

    def look_up(self, group: str, units: Collection[int]) -> None:
        """Bring units of a table of rows, LOOKUP_SLOTS at most, none twice.

        Raises CorruptModel, ModelIOError.
        """
        self._arrange_again()
        rows = self._rows[group]
        if self.residency.table_slots and self._reader is not None:
            start = time.perf_counter()
            rows.bring(np.fromiter(units, np.int64), self._reader)
            self._wait_s += time.perf_counter() - start

    def expect(self, order: Sequence[int]) -> None:
        """Say in which order stages will be fetched from now on, so that reads go the right way."""
        self._order = order
        if self._ring is not None:
            self._ring.expect(order)

    def begin_step(self, tokens: int = 1) -> None:
        """A step of so many tokens begins: what `bring` brought for one long past may go."""
        self._arrange_again()
        if self._neurons is not None:
            self._neurons.begin_step(tokens)

    @property
    def neurons_pass(self) -> bool:
        """Whether units that are brought may have to be read first."""
        return self._neurons is not None

    def prefetch(self, group: str, units: NDArray[np.int64]) -> None:
        """Begin to read units that `bring` may be asked for next: before it, once a step."""
        if self._neurons is not None:
            self._neurons.prefetch(self._layer_of[group], units)

    def bring(
        self, group: str, units: NDArray[np.int64], keep: NDArray[np.bool_] | None = None
    ) -> Brought:
        """Begin to bring units of a rare stage's group, sorted and none twice: once a step.

        They remain until the next step at least. keep: of each, whether it counts as used.
        """
        self._used_bytes += int(self._unit_bytes[group][units].sum())
        if self._neurons is None:
            return InPlace(self._tables[group][units])
        return Coming(self._neurons.bring(self._layer_of[group], units, keep), self._count_wait)

    def resize(self, residency: Residency, on_progress: Progress) -> None:
        """Keep what another residency of the same scan keeps; no stage may be in use.

        Raises CorruptModel, ModelIOError, and what on_progress raises; then the next to use a stage
        or a row finds everything as it was before, once what has changed is read again.
        """
        if residency != self.residency:
            self._arrange(residency, on_progress)

    def check_integrity(self) -> None:
        """Raise EngineError unless every slot is accounted for."""
        for rows in self._rows.values():
            rows.check_integrity()
        if self._ring is not None:
            self._ring.check_integrity()
        if self._neurons is not None:
            self._neurons.check_integrity()

    def close(self) -> None:
        """Give the memory back: no program that points into it may run any more."""
        self._stop_passing()
        self._pinned.close()
        self._gate_rows.clear()
        for rows in self._rows.values():
            rows.close()

    def _count_wait(self, seconds: float) -> None:
        self._wait_s += seconds

    def _arrange_again(self) -> None:
        """Make good what a change that failed has left."""
        if not self._arranged:
            self._arrange(self.residency, lambda done, total: None)

    def _arrange(self, residency: Residency, on_progress: Progress) -> None:
        """Open all files, so that `io` is known; pin what is to stay; make room for the rest."""
        self._stop_passing()
        self._arranged = False
        reader = self._reader = UnitReader(self._model, self._io, check=is_sound)
        files = sorted({group.file for group in self._model.groups.values()})
        reader.read([(file, 0, 1) for file in files], [np.empty(1, np.uint8) for _ in files])
        prefetcher = self._prefetcher = Prefetcher(reader)
        self._pinned.hold(residency, prefetcher, on_progress)
        for gate_rows in self._gate_rows:
            gate_rows.load(reader)
        self.residency, self.io, self.fallback = residency, reader.io, reader.fallback
        for rows in self._rows.values():
            rows.reset(residency.table_slots)
        for span, count in residency.kept():
            if span.group in self._rows:
                self._rows[span.group].pin(span.first, self.table(span.group, span.first, count))
        if residency.slots:
            self._ring = Ring(self._model, residency, prefetcher, self._put_extent)
            self._ring.expect(self._order)
        if residency.window_bytes:
            groups, room = list(self._layer_of), residency.window_bytes
            self._neurons = NeuronCache(self._model, groups, room, self._window, reader, self._gap)
        if not residency.streams:
            self._stop_passing()
        self._arranged = True
        for group in self._watchers:
            self._tell(group, 0, len(self._tables[group]))

    def _stop_passing(self) -> None:
        """Stop all reads, close the files, free the ring."""
        if self._ring is not None:
            self._ring.close()
            self._read_bytes += self._ring.read_bytes
            self._ring = None
        if self._neurons is not None:
            self._neurons.close()
            self._neuron_bytes += self._neurons.read_bytes
            self._neurons = None
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _put(self, group: str, first: int, addresses: NDArray[np.int64]) -> None:
        self._tables[group][first : first + len(addresses)] = addresses

    def _put_extent(self, extent: Extent, address: int) -> None:
        offsets = self._model.groups[extent.group].offsets
        end = extent.first + extent.count
        begins = offsets[extent.first : end] - offsets[extent.first]
        self._put(extent.group, extent.first, address + begins)

    def _tell(self, group: str, first: int, count: int) -> None:
        for on_change in self._watchers.get(group, ()):
            on_change(first, count)


def _padded_sizes(group: Group) -> NDArray[np.int64]:
    return np.diff(group.offsets)
