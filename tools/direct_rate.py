"""How fast a file is read past the page cache just now: blocks in order, several at a time.

    python tools/direct_rate.py FILE

What an engine that streams a model could do at best in the same minute: the bound beside the rows
of compare_peers.py.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import mmap
import os
import random
import threading
import time
from pathlib import Path

BLOCK = 2 << 20
AT_ONCE = 8
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

    At the end of the file it begins again. Raises SystemExit for a file of less than a block, and
    where the file system has no direct reads.
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
        with mmap.mmap(-1, BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as buffer:
            buffer.madvise(mmap.MADV_HUGEPAGE)
            while time.perf_counter() - start < seconds:
                with lock:
                    mine, at = at, (at + 1) % blocks
                done += os.preadv(file, [buffer], mine * BLOCK)
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
