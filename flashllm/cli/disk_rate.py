"""Measures how fast the disk gives a model back: its read curve, by mode, block and reads at once.

Reads go through the engine's own reader, so what Python costs a read is in the figures.
"""

from __future__ import annotations

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
from flashllm.flash.files import Bytes
from flashllm.flash.format import read_model
from flashllm.flash.layout import ALIGNMENT
from flashllm.flash.reader import UnitReader

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
    """The curve of random reads from the flash model in `path`, the page cache kept out of it.

    seconds: for each case. on_progress(cases done, cases in all). Blocks of which the largest file
    has too few to read none twice in a batch are left out, and so is a mode that the file system
    does not have. Takes 128 MiB of memory.

    Raises InvalidInput if nothing can be measured; CorruptModel or ModelIOError if the model cannot
    be read.
    """
    if sys.platform != "linux":
        raise InvalidInput("this system cannot keep its page cache out of a measurement")
    model = read_model(path)
    largest = max(model.manifest.files, key=lambda name: (path / name).stat().st_size)
    size = (path / largest).stat().st_size
    most = {block: block * _batch(block, max(AT_ONCE)) for block in BLOCKS}
    blocks = [block for block in BLOCKS if size >= most[block]]
    memory = _aligned(max((most[block] for block in blocks), default=0))
    cases = list(itertools.product(MODES, blocks, AT_ONCE))
    points = []
    for done, (io, block, at_once) in enumerate(cases):
        on_progress(done, len(cases))
        with UnitReader(model, io=io, threads=at_once) as reader:
            reader.read([(largest, 0, 1)], [np.empty(1, np.uint8)])
            if reader.fallback is None:
                buffers = list(memory[: block * _batch(block, at_once)].reshape(-1, block))
                rate = _rate(reader, largest, size, buffers, seconds)
                points.append(Point(io, block, at_once, rate))
    if not points:
        raise InvalidInput(f"{path / largest} is too small to measure a disk with")
    return DiskCurve(datetime.datetime.now(datetime.UTC).replace(microsecond=0), tuple(points))


def _batch(block: int, at_once: int) -> int:
    """How many reads to hand over together: of small blocks several for each thread, so that
    waiting for the last one counts little."""
    return at_once * max(1, min(_MOST_EACH, _SMALL_BATCH // block))


def _rate(reader: UnitReader, file: str, size: int, buffers: list[Bytes], seconds: float) -> float:
    """Bytes per second of random reads of a file of `size` that fill the buffers, again and again.

    Every block is read once before any is read again.
    """
    batch, block = len(buffers), len(buffers[0])
    shuffled, places = random.Random(block), list[int]()
    done, spent = 0, 0.0
    while spent < seconds:
        if len(places) < batch:
            _drop_cached(reader.model.path / file)
            places = [place * block for place in range(size // block)]
            shuffled.shuffle(places)
        extents = [(file, places.pop(), block) for _ in buffers]
        start = time.perf_counter()
        reader.read(extents, buffers)
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
