"""Single layers of a model over texts, with whatever units they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flashllm import kernels
from flashllm.cache.kv import Sequence as KeysAndValues
from flashllm.closing import Closing
from flashllm.convert.matrices import matrices
from flashllm.flash.codecs import Bytes
from flashllm.flash.format import FlashModel, Group
from flashllm.flash.parts import MatrixPart, Part
from flashllm.flash.quantize import Floats
from flashllm.flash.reader import UnitReader
from flashllm.kernels.memory import OVERREAD, huge_buffer
from flashllm.layers.buffers import StepBuffers
from flashllm.model.block_wiring import BlockWiring
from flashllm.model.config import ModelConfig

Observe = Callable[[StepBuffers, int], None]
"""Told the buffers as a layer leaves them, and how many rows of them are a window's."""


class HeldUnits:
    """Units of some groups in memory, and where each is: what blocks are wired to."""

    def __init__(self, model: FlashModel):
        self._tables = {
            name: np.zeros(sum(part.units for part in parts), np.int64)
            for name, parts in model.parts.items()
        }
        self._buffers: dict[str, Bytes] = {}

    def hold(self, group: str, units: Sequence[Bytes]) -> None:
        """Copy the units of a group, in place of what is held of it."""
        buffer = huge_buffer(sum(-(-len(unit) // 64) * 64 for unit in units) + OVERREAD)
        at = 0
        for i, unit in enumerate(units):
            buffer[at : at + len(unit)] = unit
            self._tables[group][i] = buffer.ctypes.data + at
            at += -(-len(unit) // 64) * 64
        self._buffers[group] = buffer

    def drop(self, groups: Sequence[str]) -> None:
        """Give the memory of groups back; their addresses are wrong afterwards."""
        for group in groups:
            self._buffers.pop(group, None)
            self._tables[group][:] = 0

    def table(self, group: str, first: int, count: int) -> NDArray[np.int64]:
        """The addresses of units: int64 [count], live."""
        return self._tables[group][first : first + count]

    def watch(self, group: str, on_change: Callable[[int, int], None]) -> None:
        """Tables are live; there is nothing to tell."""


class LayerRunner(Closing):
    """Runs single layers over windows of tokens, each a text of its own."""

    def __init__(self, config: ModelConfig, longest: int, neurons: int, threads: int):
        """longest: tokens of a window at most. neurons: of the widest layer, its padding too."""
        a = config.attention
        self._config = config
        self._backend = kernels.load("cpu", threads)
        kv_dtype = self._backend.kv_dtype
        self._buffers = StepBuffers(
            longest,
            hidden=config.hidden_size,
            heads=a.heads,
            kv_heads=a.kv_heads,
            head_dim=a.head_dim,
            neurons=neurons,
            kv_dtype=kv_dtype,
        )
        self._sequence = KeysAndValues(1, a.kv_heads, a.head_dim, longest, kv_dtype)

    def run(
        self,
        blocks: BlockWiring,
        layer: int,
        x: Floats,
        windows: Sequence[int],
        observe: Observe | None = None,
        on_window: Callable[[], None] = lambda: None,
    ) -> None:
        """Pass windows, of so many tokens each, through a layer: x float32 [tokens, hidden size]
        becomes what leaves it; with observe, which is told of each window, x stays.
        """
        s, hidden = self._buffers, self._config.hidden_size
        block = blocks.block(layer)
        block = dataclasses.replace(block, attention=dataclasses.replace(block.attention, layer=0))
        program = self._backend.program(s.capacity)
        block.record(program, s)
        first = 0
        for count in windows:
            rows = slice(first, first + count)
            s.x[:count, :hidden] = x[rows]
            s.positions[:count] = np.arange(count)
            s.kv.table[:count] = self._sequence.addresses()
            for rope in blocks.ropes:
                rope.prepare(s.positions[:count], np.full(count, s.capacity))
            program.run(count)
            if observe:
                observe(s, count)
            else:
                x[rows] = s.x[:count, :hidden]
            first += count
            on_window()

    def close(self) -> None:
        """Stop the threads."""
        self._backend.close()
        self._sequence.close()


def embedded(
    model: FlashModel, config: ModelConfig, reader: UnitReader, windows: Sequence[NDArray[np.int64]]
) -> Floats:
    """What enters the first layer for windows of token ids: float32 [tokens, hidden size]."""
    tokens = np.concatenate(windows)
    x = _rows(model.group("embed"), reader, tokens) * np.float32(config.embed_scale)
    if config.learned_positions:
        positions = np.concatenate([np.arange(len(window)) for window in windows])
        x += _rows(model.group("positions"), reader, positions)
    return x


def read_units(reader: UnitReader, group: Group) -> list[Bytes]:
    """All units of a group, verified."""
    units = [np.empty(int(length), np.uint8) for length in group.lengths]
    reader.read_units(group, range(group.units), units)
    return units


def _rows(group: Group, reader: UnitReader, wanted: NDArray[np.int64]) -> Floats:
    """Rows of the matrix that a group holds, a unit at a time."""
    part = group.parts[0]
    if not isinstance(part, MatrixPart):
        raise TypeError(f"{group.name} is no matrix")
    found = np.empty((len(wanted), part.cols), np.float32)
    per_unit = 16 * part.panels_per_unit
    for unit in np.unique(wanted // per_unit).tolist():
        data = np.empty(int(group.lengths[unit]), np.uint8)
        reader.read_units(group, [unit], [data])
        rows = min(per_unit, part.rows - unit * per_unit)
        one = dataclasses.replace(part, rows=rows, units=1)
        here = wanted // per_unit == unit
        found[here] = matrices(one, [data])[0][wanted[here] - unit * per_unit]
    return found


def planned_model(model: FlashModel, parts: Mapping[str, tuple[Part, ...]]) -> FlashModel:
    """A model whose groups have these parts, for blocks to be wired; its units are nowhere."""
    nothing = np.zeros(0, np.int64)
    groups = {
        name: Group(name, "", own, nothing, nothing, nothing.astype(np.uint64), 0)
        for name, own in parts.items()
    }
    return dataclasses.replace(model, groups=groups)
