"""How fast this disk gives a model back: reads past the page cache, in blocks as units are."""

from __future__ import annotations

import dataclasses
import random
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.reader import UnitReader

_PAGE = 4096
_SECONDS = 0.4
_CASES = ((64 << 10, 1), (64 << 10, 8), (1 << 20, 1), (1 << 20, 8))


@dataclasses.dataclass(frozen=True)
class DiskRate:
    """Bytes per second of random reads of so many bytes, so many at once."""

    block_bytes: int
    threads: int
    bytes_per_s: float


def measure(path: Path, seconds: float = _SECONDS) -> list[DiskRate]:
    """Rates of reading the flash model in `path`, by block size and reads at once.

    Raises CorruptModel or ModelIOError if the model cannot be read.
    """
    model = read_model(path)
    largest = max(model.manifest.files, key=lambda name: (path / name).stat().st_size)
    size = (path / largest).stat().st_size
    return [
        _rate(model, largest, size, block, threads, seconds)
        for block, threads in _CASES
        if size >= 2 * block
    ]


def _rate(
    model: FlashModel, file: str, size: int, block: int, threads: int, seconds: float
) -> DiskRate:
    """Read batches of random blocks for so many seconds, as the engine reads units."""
    places, done, start = random.Random(block), 0, time.perf_counter()
    buffers = [_aligned(block) for _ in range(4 * threads)]
    with UnitReader(model, io="direct", threads=threads) as reader:
        while time.perf_counter() < start + seconds:
            extents = [(file, places.randrange(size // block) * block, block) for _ in buffers]
            reader.read(extents, buffers)
            done += block * len(buffers)
    return DiskRate(block, threads, done / (time.perf_counter() - start))


def _aligned(size: int) -> NDArray[np.uint8]:
    """A buffer that begins on a page, as direct reads want it."""
    memory = np.empty(size + _PAGE, np.uint8)
    skip = -memory.ctypes.data % _PAGE
    return memory[skip : skip + size]
