"""Sizes in the flash format: bytes of a tile, a panel, a neuron, and how many make a unit."""

from __future__ import annotations

from flashllm.errors import CorruptModel

DTYPES = ("f32", "f16", "bf16", "q8", "q4", "q4m")
ALIGNMENT = 4096  # of units in a file: what direct reads need
UNIT_TARGET = 160 << 10  # bytes; smaller reads waste the disk, larger ones waste the cache
ROW_UNIT = 16 << 10
"""Bytes that a unit of codec `row` reaches. Neurons fire one by one, so a larger unit would mostly
bring those that are silent; one smaller would be mostly padding and cost as much to read."""
GROUP = 32  # weights that share a scale
TILE_ROWS, TILE_COLS = 16, 32
GRAINS = {"tile": 32, "row": 1, "bitmap": 32}
"""Neurons that an FFN unit of each codec is counted in."""
BITMAP_SCALE_BYTES = {"f16": 0, "bf16": 0, "q8": 32, "q4": 32}
"""Dtypes whose tiles may be stored as bitmaps, and the bytes of the scales of one. With a minimum
(q4m) no code stands for 0; f32 is for tests and vectors."""
BITMAP_UNIT = 8
"""A unit of codec `bitmap` has the tiles of so many units of `tile`. It is shorter than these, so
that what fills its last 4 KiB would else be a few percent of it, and checking it costs some 20 us
of Python: with 8, a pruned model in q8 streamed 6 to 14 % faster than with 3 (docs/endor.md)."""

_TILE_BYTES = {"f32": 2048, "f16": 1024, "bf16": 1024, "q8": 544, "q4": 288, "q4m": 320}
_ROW_BYTES = {"f32": 256, "f16": 128, "bf16": 128, "q8": 68, "q4": 36, "q4m": 40}  # 64 columns


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def round_up(value: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `value`."""
    return ceil_div(value, multiple) * multiple


def tile_bytes(dtype: str) -> int:
    """Bytes of a tile of 16 rows x 32 columns. Raises CorruptModel for an unknown dtype."""
    if dtype not in _TILE_BYTES:
        raise CorruptModel(
            f"unknown weight dtype {dtype!r}; this version reads {', '.join(DTYPES)}"
        )
    return _TILE_BYTES[dtype]


def panel_bytes(dtype: str, cols: int) -> int:
    """Bytes of a panel: the tiles of 16 rows of `cols` columns."""
    return ceil_div(cols, TILE_COLS) * tile_bytes(dtype)


def row_bytes(dtype: str, width: int) -> int:
    """Bytes of one row of codec `row`: codes, scales and minimums of `width` padded to 64."""
    tile_bytes(dtype)
    return ceil_div(width, 64) * _ROW_BYTES[dtype]


def bitmap_bytes(dtype: str, tiles: int, density: float) -> int:
    """Bytes of `tiles` tiles as bitmaps, if so large a share of the weights is not zero: those of
    the bitmaps, the scales, and the weights.
    """
    weights = _TILE_BYTES[dtype] - BITMAP_SCALE_BYTES[dtype]
    return tiles * (64 + BITMAP_SCALE_BYTES[dtype]) + round(tiles * weights * density)


def grain_bytes(codec: str, gate: str | None, up: str, down: str, width: int) -> int:
    """Bytes of the smallest step of an FFN unit: a block of 32 neurons (tile; bitmap, before it is
    compressed) or one (row).

    gate, up and down are dtypes; a network without gates has none.
    """
    inputs = (up,) if gate is None else (gate, up)
    if codec == "row":
        return sum(row_bytes(dtype, width) for dtype in (*inputs, down))
    if codec not in ("tile", "bitmap"):
        raise CorruptModel(f"unknown codec {codec!r}; this version reads {', '.join(GRAINS)}")
    down_tiles = ceil_div(width, TILE_ROWS)
    return sum(2 * panel_bytes(dtype, width) for dtype in inputs) + down_tiles * tile_bytes(down)


def unit_target(codec: str) -> int:
    """Bytes that a unit of tiles should have, before codec `bitmap` compresses them."""
    return UNIT_TARGET * (BITMAP_UNIT if codec == "bitmap" else 1)


def even_split(count: int, nbytes: int, target: int) -> int:
    """How many of `count` pieces of `nbytes` go into a unit, all units about the target size."""
    units = max(1, round(count * nbytes / target))
    return ceil_div(count, min(units, count))


def least_split(count: int, nbytes: int) -> int:
    """The fewest of `count` pieces of `nbytes` that reach the size of a `row` unit, or all."""
    return min(count, ceil_div(ROW_UNIT, nbytes))


def exact_split(count: int, nbytes: int, target: int) -> int:
    """As even_split, but a divisor of `count`: every unit holds the same."""
    divisors = [d for d in range(1, count + 1) if count % d == 0]
    return min(divisors, key=lambda d: abs(d * nbytes - target))
