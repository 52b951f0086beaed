"""Tells whether a file lies in the system's page cache, by looking at a few pages of it."""

from __future__ import annotations

import os
import random
from pathlib import Path

from flashllm.flash.layout import ALIGNMENT, ceil_div

PAGES, MOST_MISSING = 32, 3
"""How many pages to look at, and how many may be missing: some always may be, of any file read."""


def is_cached(path: Path) -> bool:
    """Whether nearly all of some pages spread over a file are in the page cache; Linux only.

    No where the file system cannot tell. Raises OSError if the file cannot be opened.

    Linux answers at once that it does not have a page, but then fetches it (6.18: that page and
    no more). So the pages are others each time, or later looks would find what earlier ones left.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = ceil_div(os.fstat(fd).st_size, ALIGNMENT)
        looks = min(PAGES, pages)
        missing = 0
        for i in range(looks):
            page = int((i + random.random()) * pages / looks)
            try:
                os.preadv(fd, [bytearray(1)], page * ALIGNMENT, os.RWF_NOWAIT)
            except BlockingIOError:
                missing += 1
            if missing > MOST_MISSING:
                return False
        return missing < looks
    except OSError:  # EOPNOTSUPP where the file system cannot tell; else reading will say what
        return False
    finally:
        os.close(fd)
