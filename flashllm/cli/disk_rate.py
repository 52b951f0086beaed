"""Measures how fast the disk gives a file back: its read curve, by mode, block and reads at once.

Reads are made as the engine makes them, so what Python costs a read is in the figures.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import itertools
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flashllm.disk_curve import DiskCurve, Point
from flashllm.errors import InvalidInput
from flashllm.flash.files import Bytes, ReadableFile, Scratch, open_file
from flashllm.flash.layout import ALIGNMENT

SECONDS = 0.15
"""How long to measure a case, which ends with the batch under way."""
MODES = ("direct", "pread")
BLOCKS = (16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20)
AT_ONCE = (1, 4, 8, 16)

_SMALL_BATCH = 1 << 20
_MOST_EACH = 16


def measure(
    path: Path,
    seconds: float,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> DiskCurve:
    """The curve of random reads from the file `path`, the page cache kept out of it.

    seconds: for each case. on_progress(cases done, cases in all). Blocks of which the file has too
    few to read none twice in a batch are left out, and so is a mode that the file system does not
    have. Takes 128 MiB of memory.

    Raises InvalidInput if nothing can be measured; ModelIOError if the file cannot be read.
    """
    if sys.platform != "linux":
        raise InvalidInput("this system cannot keep its page cache out of a measurement")
    size = path.stat().st_size
    most = {block: block * _batch(block, max(AT_ONCE)) for block in BLOCKS}
    blocks = [block for block in BLOCKS if size >= most[block]]
    memory = _aligned(max((most[block] for block in blocks), default=0))
    cases = list(itertools.product(MODES, blocks, AT_ONCE))
    points = []
    for done, (io, block, at_once) in enumerate(cases):
        on_progress(done, len(cases))
        file = open_file(path, io, Scratch())
        try:
            if io in file.serves:
                buffers = list(memory[: block * _batch(block, at_once)].reshape(-1, block))
                rate = _rate(file, size, buffers, at_once, seconds)
                points.append(Point(io, block, at_once, rate))
        finally:
            file.close()
    if not points:
        raise InvalidInput(f"{path} is too small to measure a disk with")
    return DiskCurve(datetime.datetime.now(datetime.UTC).replace(microsecond=0), tuple(points))


def _batch(block: int, at_once: int) -> int:
    """How many reads to hand over together: of small blocks several for each thread, so that
    waiting for the last one counts little."""
    return at_once * max(1, min(_MOST_EACH, _SMALL_BATCH // block))


def _rate(
    file: ReadableFile, size: int, buffers: list[Bytes], at_once: int, seconds: float
) -> float:
    """Bytes per second of random reads of a file of `size` that fill the buffers, again and again.

    Every block is read once before any is read again.
    """
    batch, block = len(buffers), len(buffers[0])
    shuffled, places = random.Random(block), list[int]()
    done, spent = 0, 0.0
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        while spent < seconds:
            if len(places) < batch:
                _drop_cached(file.path)
                places = [place * block for place in range(size // block)]
                shuffled.shuffle(places)
            offsets = [places.pop() for _ in buffers]
            start = time.perf_counter()
            for _ in pool.map(file.read_into, offsets, buffers):
                pass
            spent += time.perf_counter() - start
            done += batch * block
    return done / spent


def _drop_cached(path: Path) -> None:
    """Ask the system to forget what it holds of a file, which it then has to read anew."""
    if sys.platform == "linux":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _aligned(size: int) -> Bytes:
    """Memory that begins on a page, as direct reads want it, and that the system has given."""
    memory = np.empty(size + ALIGNMENT, np.uint8)
    memory.fill(0)
    skip = -memory.ctypes.data % ALIGNMENT
    return memory[skip : skip + size]
