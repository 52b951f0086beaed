"""Stored panels of bitmaps to tiles in memory, one function for each dtype."""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.bitmaps import expand_run
from flashllm.kernels.cpu.panels import panel_bytes
from flashllm.kernels.cpu.tiles import (
    BF16_BITMAP,
    F16_BITMAP,
    Q4_BITMAP,
    Q8_BITMAP,
    tile_bytes,
)


@jit.inline
def _expand(fmt, panel, panels, tiles, out):
    for i in range(panels):
        run, to = panel + i * panel_bytes(fmt, tiles), out + i * tiles * tile_bytes(fmt)
        expand_run(fmt, run, tiles, to)


@jit.entry("(intp, intp, intp, intp)")
def expand_f16(panel, panels, tiles, out):
    """`panels` panels of `tiles` tiles each, from address `panel` on, to address `out`."""
    _expand(F16_BITMAP, panel, panels, tiles, out)


@jit.entry("(intp, intp, intp, intp)")
def expand_bf16(panel, panels, tiles, out):
    """As expand_f16."""
    _expand(BF16_BITMAP, panel, panels, tiles, out)


@jit.entry("(intp, intp, intp, intp)")
def expand_q8(panel, panels, tiles, out):
    """As expand_f16."""
    _expand(Q8_BITMAP, panel, panels, tiles, out)


@jit.entry("(intp, intp, intp, intp)")
def expand_q4(panel, panels, tiles, out):
    """As expand_f16."""
    _expand(Q4_BITMAP, panel, panels, tiles, out)
