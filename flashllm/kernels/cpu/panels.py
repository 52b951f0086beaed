"""Panels, 16 rows of a matrix in tiles, times one token or four: what every product is made of.

A panel's tiles may be stored as bitmaps (bitmaps.py): then `tiles_of` expands them before they are
multiplied by several tokens, and `pair_alone` multiplies one without.
"""

from __future__ import annotations

from numba.extending import overload

from flashllm.kernels import jit
from flashllm.kernels.cpu.bitmaps import expand_run, pair_of_runs
from flashllm.kernels.cpu.tiles import OPTIONS, dot_1, dot_4, tile_bytes
from flashllm.kernels.simd import add, load_f32, load_int, prefetch, prefetch_near, store_f32

FAR, NEAR = 3072, 384
"""Bytes ahead of the tile being computed that are wanted in the second and first level of cache."""


def panel_bytes(fmt, tiles):
    """Bytes from a stored panel of so many tiles to the next; their values are elsewhere if they
    are stored as bitmaps.
    """
    raise TypeError("for kernels only")


def is_bitmap(fmt):
    """Whether tiles are stored as bitmaps."""
    raise TypeError("for kernels only")


def tiles_of(fmt, panel, tiles, scratch):
    """Where the tiles of a stored panel are: in `scratch`, if they have to be expanded."""
    raise TypeError("for kernels only")


def pair_alone(fmt, a, b, blocks, x, y, z):
    """y + panel a and z + panel b, each times the first token of a step of few, whose weights come
    from memory.
    """
    raise TypeError("for kernels only")


@overload(panel_bytes, jit_options=OPTIONS)
def _panel_bytes(fmt, tiles):
    if fmt.format.bitmap:
        return lambda fmt, tiles: 8 + 64 * tiles
    return lambda fmt, tiles: tiles * tile_bytes(fmt)


@overload(is_bitmap, jit_options=OPTIONS)
def _is_bitmap(fmt):
    told = fmt.format.bitmap
    return lambda fmt: told


@overload(tiles_of, jit_options=OPTIONS)
def _tiles_of(fmt, panel, tiles, scratch):
    return _expanded if fmt.format.bitmap else lambda fmt, panel, tiles, scratch: panel


def _expanded(fmt, panel, tiles, scratch):
    expand_run(fmt, panel, tiles, scratch)
    return scratch


@overload(pair_alone, jit_options=OPTIONS)
def _pair_alone(fmt, a, b, blocks, x, y, z):
    return _pair_of_bitmaps if fmt.format.bitmap else _pair_of_tiles


@jit.inline
def prefetch_tile(fmt, far, near):
    """Ask for a tile's worth of cache lines in the second level, and in the first."""
    for line in range(0, tile_bytes(fmt), 64):
        prefetch(far + line)
        prefetch_near(near + line)


@jit.inline
def panel_1(fmt, panel, blocks, x, t, start):
    """start + 16 rows times token t."""
    acc = start
    for b in range(blocks):
        acc = dot_1(fmt, panel + b * tile_bytes(fmt), acc, x, t, b)
    return acc


@jit.inline
def panel_4(fmt, panel, blocks, x, t, start):
    """panel_1 for tokens t .. t+3; start is a tuple of 4 vectors."""
    acc = start
    for b in range(blocks):
        acc = dot_4(fmt, panel + b * tile_bytes(fmt), acc, x, t, b)
    return acc


def _pair_of_bitmaps(fmt, a, b, blocks, x, y, z):
    return pair_of_runs(fmt, a, b, blocks, x, 0, y, z)


def _pair_of_tiles(fmt, a, b, blocks, x, y, z):
    """Two streams keep more reads under way than one. Measured at q4, 11008 x 4096, one thread,
    share of the read bandwidth: one stream 0.73, two 0.77; with prefetch 3 KB ahead into the second
    level and 384 bytes ahead into the first 0.93 (f16: 0.66, 0.80, 0.90).
    """
    for i in range(blocks):
        p, q = a + i * tile_bytes(fmt), b + i * tile_bytes(fmt)
        prefetch_tile(fmt, p + FAR, p + NEAR)
        prefetch_tile(fmt, q + FAR, q + NEAR)
        y = dot_1(fmt, p, y, x, 0, i)
        z = dot_1(fmt, q, z, x, 0, i)
    return y, z


@jit.inline
def put(out, value, accumulate):
    """Write 16 results, or add them to what is there."""
    if accumulate:
        value = add(load_f32(out), value)
    store_f32(out, value)


@jit.inline
def panel_address(table, panel, per_unit, size):
    """Where a panel of `size` bytes is, when every unit holds per_unit of them."""
    unit = panel // per_unit
    return load_int(table + 8 * unit) + (panel - unit * per_unit) * size
