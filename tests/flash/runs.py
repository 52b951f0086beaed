"""Reads ahead of a tiny model, for the tests of them: buffers, what belongs in them, a gate."""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest

from flashllm.flash.format import FlashModel, Group
from flashllm.flash.prefetch import Pending, Prefetcher

POSITIONED = pytest.mark.skipif(sys.platform == "win32", reason="reads there are not os.preadv")
WAIT_S = 30
"""What no test should take, and after which one fails rather than hangs."""


class Gate:
    """Holds back every os.preadv until it is opened, and notes where they read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.offsets: list[int] = []
        self._open = threading.Event()
        self._arrivals = threading.Semaphore(0)
        real = os.preadv

        def preadv(fd: int, views: list[memoryview], offset: int, flags: int = 0) -> int:
            self.offsets.append(offset)
            self._arrivals.release()
            assert self._open.wait(WAIT_S)
            return real(fd, views, offset, flags)

        monkeypatch.setattr(os, "preadv", preadv)

    def open(self) -> None:
        self._open.set()

    def await_reads(self, count: int) -> None:
        """Return when so many reads more have begun."""
        for _ in range(count):
            assert self._arrivals.acquire(timeout=WAIT_S)


def run_of(group: Group, first: int, count: int = 1) -> np.ndarray:
    """A buffer for units, all 0xEE, which no padding is."""
    return np.full(int(group.offsets[first + count] - group.offsets[first]), 0xEE, np.uint8)


def expected(model: FlashModel, group: Group, first: int, count: int = 1) -> bytes:
    begin, end = (group.file_offset + int(group.offsets[i]) for i in (first, first + count))
    return (model.path / group.file).read_bytes()[begin:end]


def start_all(ahead: Prefetcher, group: Group) -> list[tuple[Pending, np.ndarray]]:
    """A read for each unit of a group."""
    outs = [run_of(group, unit) for unit in range(group.units)]
    return [(ahead.start(group, unit, 1, out), out) for unit, out in enumerate(outs)]
