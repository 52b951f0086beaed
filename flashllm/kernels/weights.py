"""What kernels are given: weights by the addresses of their units, activations, keys and values.

A handle says how the bytes are laid out (docs/format.md); its table says where each unit is now.
Whoever fills a table owns the memory, and may change an address between two runs of a program.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import InvalidInput

TILE_ROWS, TILE_COLS = 16, 32
TILE_BYTES = {"f32": 2048, "f16": 1024, "bf16": 1024, "q8": 544, "q4": 288, "q4m": 320}
BITMAP_SCALE_BYTES = {"f16": 0, "bf16": 0, "q8": 32, "q4": 32}
"""Dtypes whose tiles may be stored as bitmaps, and the bytes of the scales of one."""
QUANTIZED = frozenset({"q8", "q4", "q4m"})
"""Weight dtypes whose kernels take int8 activations."""

Floats = NDArray[np.float32]
Addresses = NDArray[np.int64]


def padded(width: int) -> int:
    """Elements from one row of activations to the next: kernels read 64 columns at a time."""
    return -(-width // 64) * 64


def row_part_bytes(dtype: str, width: int) -> int:
    """Bytes of a gate row, up row or down column of codec `row`."""
    columns = padded(width)
    per_column = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8": 1 + 2 / 32, "q4": 0.5 + 2 / 32}
    return int(columns * {**per_column, "q4m": 0.5 + 4 / 32}[dtype])


def tile_panel_bytes(dtype: str, tiles: int, *, bitmap: bool) -> int:
    """Bytes from a panel of so many tiles to the next, in a unit; of bitmaps, without values."""
    return 8 + 64 * tiles if bitmap else tiles * TILE_BYTES[dtype]


def _check(dtype: str, table: Addresses, units: int, what: str, *, bitmap: bool = False) -> None:
    if dtype not in TILE_BYTES:
        raise InvalidInput(
            f"{what}: no kernels for dtype {dtype!r}; there are {sorted(TILE_BYTES)}"
        )
    if bitmap and dtype not in BITMAP_SCALE_BYTES:
        raise InvalidInput(f"{what}: no bitmaps of {dtype}; of {sorted(BITMAP_SCALE_BYTES)}")
    if table.dtype != np.int64 or table.shape != (units,) or not table.flags.c_contiguous:
        raise InvalidInput(f"{what}: its table must be {units} contiguous int64 addresses")


@dataclasses.dataclass(frozen=True, eq=False)
class TileMatrix:
    """W [rows, cols] in tiles; table holds the address of every unit of panels_per_unit panels.

    bitmap: tiles are stored as bitmaps and what is not zero.
    """

    dtype: str
    rows: int
    cols: int
    panels_per_unit: int
    table: Addresses
    bitmap: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.cols, self.panels_per_unit) < 1:
            raise InvalidInput(f"a {self.rows} x {self.cols} matrix has no panels")
        units = -(-self.panels // self.panels_per_unit)
        _check(self.dtype, self.table, units, "matrix", bitmap=self.bitmap)

    @property
    def panels(self) -> int:
        """Groups of 16 rows."""
        return -(-self.rows // TILE_ROWS)

    @property
    def blocks(self) -> int:
        """Groups of 32 columns."""
        return -(-self.cols // TILE_COLS)


@dataclasses.dataclass(frozen=True, eq=False)
class TileFFN:
    """A feed-forward, gated or not, in units of blocks_per_unit blocks of 32 neurons.

    bitmap: tiles are stored as bitmaps and what is not zero.
    """

    dtype: str
    down_dtype: str
    width: int
    neurons: int
    blocks_per_unit: int
    table: Addresses
    gated: bool = True
    bitmap: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.neurons, self.blocks_per_unit) < 1:
            raise InvalidInput(f"a feed-forward of {self.width} x {self.neurons} has no units")
        units = -(-self.neurons // (TILE_COLS * self.blocks_per_unit))
        for dtype in (self.dtype, self.down_dtype):
            _check(dtype, self.table, units, "feed-forward", bitmap=self.bitmap)

    @property
    def padded_neurons(self) -> int:
        """Neurons with the zero ones that fill the last unit."""
        return len(self.table) * self.blocks_per_unit * TILE_COLS

    @property
    def input_bytes(self) -> int:
        """Bytes of a unit before down: of gate, if there is one, and up."""
        blocks = -(-self.width // TILE_COLS)
        panels = (4 if self.gated else 2) * self.blocks_per_unit
        return panels * tile_panel_bytes(self.dtype, blocks, bitmap=self.bitmap)

    def part(self, first: int, count: int) -> TileFFN:
        """Neurons first .. first+count-1; InvalidInput unless a unit begins with the first."""
        unit, within = divmod(first, self.blocks_per_unit * TILE_COLS)
        if within:
            raise InvalidInput(f"neuron {first} is in the middle of a unit")
        units = -(-count // (self.blocks_per_unit * TILE_COLS))
        table = self.table[unit : unit + units]
        return dataclasses.replace(self, neurons=count, table=table)


@dataclasses.dataclass(frozen=True, eq=False)
class RowFFN:
    """The neurons of a feed-forward that are computed: table holds each one's address.

    Their order is the order in which they are summed: ascending ids give the dense result. count
    [1], if any, says how many of the table's first entries are computed; kernels read it at every
    run, and whoever changes it keeps 0 <= count <= len(table).
    """

    dtype: str
    width: int
    table: Addresses
    gated: bool = True
    count: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.width < 1:
            raise InvalidInput(f"a feed-forward of width {self.width} has no columns")
        _check(self.dtype, self.table, len(self.table), "feed-forward rows")
        if self.count is not None and (self.count.dtype != np.int64 or self.count.shape != (1,)):
            raise InvalidInput("feed-forward rows: their count must be one int64")

    @property
    def computed(self) -> Addresses:
        """The entries of the table that are computed now."""
        return self.table if self.count is None else self.table[: int(self.count[0])]

    @property
    def part_bytes(self) -> int:
        """Bytes of a gate row, an up row or a down column."""
        return row_part_bytes(self.dtype, self.width)

    @property
    def input_bytes(self) -> int:
        """Bytes of a neuron before its down column: of its gate row, if any, and up row."""
        return (2 if self.gated else 1) * self.part_bytes

    def part(self, first: int, count: int) -> RowFFN:
        """Neurons first .. first+count-1."""
        return dataclasses.replace(self, table=self.table[first : first + count])


ACTIVATIONS = ("silu", "gelu", "gelu_erf", "relu", "relu2")


@dataclasses.dataclass(frozen=True)
class Nonlinearity:
    """What a feed-forward does to its gate, or to up where there is no gate.

    relu2 is the square of relu (So et al., 2021). threshold: relu passes only what exceeds it,
    unchanged (FATReLU; Kurtz et al., 2020). up_relu: up goes through relu as well before the two
    are multiplied (dReLU; Song et al., 2024).
    """

    function: str
    threshold: float = 0.0
    up_relu: bool = False

    def __post_init__(self) -> None:
        if self.function not in ACTIVATIONS:
            raise InvalidInput(f"no activation {self.function!r}; one of {', '.join(ACTIVATIONS)}")
        if self.threshold and (self.function != "relu" or not 0 <= self.threshold < math.inf):
            raise InvalidInput(f"{self.function} takes no threshold of {self.threshold}")

    @property
    def of_gate(self) -> Nonlinearity:
        """What is done to the gate alone: where it gives 0, the neuron is silent."""
        return dataclasses.replace(self, up_relu=False)


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How attention weighs position j for a query at position p >= j.

    The score is scale * (q . k); with a soft_cap c it becomes c tanh(score / c); slopes[head] *
    (p - j) is taken off (ALiBi; Press et al., 2022). With a window only p - j < window is seen.
    """

    scale: float
    window: int | None = None
    soft_cap: float | None = None
    slopes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise InvalidInput(f"a window of {self.window} tokens sees nothing")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise InvalidInput(f"scores cannot be capped at {self.soft_cap}")

    @property
    def plain(self) -> bool:
        """Whether scores are only scaled."""
        return self.window is None and self.soft_cap is None and not self.slopes


class Activations:
    """Up to `capacity` rows of `width` floats with their int8 form: groups of 32, one scale each.

    values float32, codes int8 [capacity, stride]; scales float32, sums int32 [capacity, stride/32].
    Columns past the width stay zero.
    """

    def __init__(self, capacity: int, width: int):
        stride = padded(width)
        self.width = width
        self.values: Floats = np.zeros((capacity, stride), np.float32)
        self.codes = np.zeros((capacity, stride), np.int8)
        self.scales: Floats = np.zeros((capacity, stride // 32), np.float32)
        self.sums = np.zeros((capacity, stride // 32), np.int32)

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self.values)

    @property
    def stride(self) -> int:
        """Elements from row to row."""
        return int(self.values.shape[1])


class FineActivations:
    """Activations quantised twice: rows 2t and 2t + 1 of `rows` add up to row t, in 15 bits.

    For quantised weights where 8 bits are too few; it doubles the arithmetic, not the bytes read.
    """

    def __init__(self, capacity: int, width: int):
        self.width = width
        self.values: Floats = np.zeros((capacity, padded(width)), np.float32)
        self.rows = Activations(2 * capacity, width)


KV_NAMES: dict[str, Literal["f16", "f32", "q8"]] = {
    "float16": "f16",
    "float32": "f32",
    "int8": "q8",
}
"""What users call the dtypes of keys and values, by numpy's names."""

Q8_SMALLEST = 1e-30
"""A head's vector whose largest number is below this is kept as zeros in q8."""


def q8_keys(head_dim: int) -> np.dtype[Any]:
    """A block of 16 positions' keys in q8: codes int8 [dim, 16], and a scale per position.

    A number is code * scale, and scale is a 127th of the largest of the position's `head_dim`
    numbers: it depends on no other token.
    """
    return np.dtype([("codes", np.int8, (head_dim, 16)), ("scales", np.float32, 16)])


def q8_values(head_dim: int) -> np.dtype[Any]:
    """A block of 16 positions' values in q8: codes int8 [16, dim], and a scale per position."""
    return np.dtype([("codes", np.int8, (16, head_dim)), ("scales", np.float32, 16)])


class KVRows:
    """Where the keys and values of each row's sequence are.

    table int64 [capacity, 3]: address of the sequence's keys, of its values, and the bytes of one
    head of one layer in either. Keys lie [layer][head][position / 16][dim][16], so that a lane is a
    position; values [layer][head][position][dim]. dtype: float16, float32, or int8 for q8, which
    lies in the blocks of q8_keys and q8_values: 16 positions' codes, then their 16 scales.
    """

    def __init__(self, capacity: int, kv_heads: int, head_dim: int, dtype: np.dtype[Any]):
        if head_dim % 16:
            raise InvalidInput(f"heads of {head_dim} elements: kernels need a multiple of 16")
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.table = np.zeros((capacity, 3), np.int64)
