"""What a read costs, from a disk's measured curve: whether two reads or one over a hole is cheaper.

Pure arithmetic.
"""

from __future__ import annotations

from flashllm.disk_curve import DiskCurve

READERS = 16
"""Reads of single units under way at once, at the least."""

DEFAULT_GAP = 48 << 10
"""The gap of a disk that was not measured: what one that gives 0.7 GB/s in reads of 16 KiB and 2.8
in reads of 1 MiB takes as long for as for beginning another."""

LARGEST_GAP = 128 << 10
"""More is never read in vain: a curve's few points do not tell so exactly."""

_SLOWEST, _FASTEST = 1e3, 1e13  # bytes per second that a disk may be believed to give
_STEP = 4 << 10  # units begin at such bounds


def read_gap(curve: DiskCurve | None) -> int:
    """The most bytes that are rather read in vain than two reads made, READERS of them at once.

    Fits seconds = a + b * bytes to the curve's direct reads, each point's square error relative to
    its time; beginning a read then costs as much as a / b bytes of it. DEFAULT_GAP without a curve
    of two block sizes at least.
    """
    if curve is None or "direct" not in curve.modes or len(curve.blocks("direct")) < 2:
        return DEFAULT_GAP
    blocks = curve.blocks("direct")
    rates = [curve.rate(block, READERS) for block in blocks]
    seconds = [
        block / min(max(rate, _SLOWEST), _FASTEST)
        for block, rate in zip(blocks, rates, strict=True)
    ]
    weights = [1 / s**2 for s in seconds]
    total = sum(weights)
    mean_block = sum(w * block for w, block in zip(weights, blocks, strict=True)) / total
    mean_s = sum(w * s for w, s in zip(weights, seconds, strict=True)) / total
    points = list(zip(weights, blocks, seconds, strict=True))
    spread = sum(w * (block - mean_block) ** 2 for w, block, _ in points)
    slope = sum(w * (block - mean_block) * (s - mean_s) for w, block, s in points) / spread
    begin = mean_s - slope * mean_block
    if begin <= 0:
        return 0
    if begin >= slope * LARGEST_GAP:
        return LARGEST_GAP
    return int(begin / slope) // _STEP * _STEP
