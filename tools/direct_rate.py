"""How fast a file is read past the page cache just now: blocks in order, several at a time.

    python tools/direct_rate.py FILE

What an engine that streams a model could do at best in the same minute: the bound beside the rows
of compare_peers.py.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import itertools
import mmap
import os
import random
import threading
import time
from pathlib import Path

BLOCK = 2 << 20
AT_ONCE = 8
KEPT = 8
"""Blocks that a reader keeps: what streams a model must keep what it has read until it is used.

A block read over the one before it is still in the processor's cache, which no engine can have:
2.47 GB/s with one block for each of 8 readers, 2.27 with two, 2.27, 2.29 and 2.28 with four, eight
and sixteen (medians of 8 rounds in turns).
"""
SECONDS = 2.0


def main() -> None:
    """Measure a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    rate = direct_rate(options.file, options.seconds)
    print(f"{rate / 1e9:.2f} GB/s: {BLOCK >> 20} MiB blocks in order, {AT_ONCE} at a time")


def direct_rate(path: Path, seconds: float = SECONDS) -> float:
    """Bytes per second of direct reads of BLOCK in order from a random place, AT_ONCE at a time.

    Each into memory of KEPT blocks. At the end of the file it begins again. Raises SystemExit for
    a file of less than a block, and where the file system has no direct reads.
    """
    blocks = path.stat().st_size // BLOCK
    if not blocks:
        raise SystemExit(f"{path} is too small to measure a disk with: give at least {BLOCK} bytes")
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        raise SystemExit(
            f"{path}: no direct reads here ({error.strerror}); use another disk"
        ) from None
    lock = threading.Lock()
    at = random.randrange(blocks)
    start = time.perf_counter()

    def read() -> int:
        nonlocal at
        done = 0
        # On a page boundary, as direct reads must be, in a huge page, which is faster to fill.
        memory = mmap.mmap(-1, KEPT * BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        with memory, memoryview(memory) as kept:
            slots = itertools.cycle(range(0, KEPT * BLOCK, BLOCK))
            while time.perf_counter() - start < seconds:
                with lock:
                    mine, at = at, (at + 1) % blocks
                slot = next(slots)
                done += os.preadv(file, [kept[slot : slot + BLOCK]], mine * BLOCK)
        return done

    try:
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            readers = [pool.submit(read) for _ in range(AT_ONCE)]
            done = sum(reader.result() for reader in readers)
        return done / (time.perf_counter() - start)
    finally:
        os.close(file)


if __name__ == "__main__":
    main()
