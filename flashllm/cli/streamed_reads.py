"""How fast the disk gives back what a run streams: the very same reads, with nothing computed."""

from __future__ import annotations

import itertools
import time
from collections import deque
from pathlib import Path

from flashllm.cache.arena import Arena
from flashllm.cache.policy import pinned_scan
from flashllm.flash.format import read_model
from flashllm.flash.prefetch import Pending, Prefetcher
from flashllm.flash.reader import UnitReader
from flashllm.model.config import ModelConfig
from flashllm.model.scan import scan_of

_QUEUED = 16
"""Reads asked for ahead, of which the Prefetcher's eight threads are at work on as many at once."""


def measure(path: Path, room: int, io: str, seconds: float) -> float | None:
    """Bytes per second of the reads that a token needs if the model has `room` bytes for weights.

    In the order of their use, again and again for at least `seconds`, each unit verified. None if
    no stage streams. Takes _QUEUED slots of memory.
    Raises CorruptModel, ModelIOError, InvalidInput, OutOfBudget.
    """
    model = read_model(path)
    config = ModelConfig.from_json(model.manifest.config)
    residency = pinned_scan(scan_of(config, model.offsets, model.manifest.codec), room)
    stages = range(len(residency.scan.stages))
    extents = [extent for stage in stages for extent in residency.extents(stage)]
    if not extents:
        return None
    arena = Arena(_QUEUED, residency.slot_bytes)
    under_way: deque[tuple[Pending, int, int]] = deque()
    done, start = 0, time.perf_counter()
    with UnitReader(model, io) as reader, Prefetcher(reader) as prefetcher:
        for extent in itertools.cycle(extents):
            if not arena.free:
                pending, slot, nbytes = under_way.popleft()
                pending.wait()
                arena.give(slot)
                done += nbytes
                if (spent := time.perf_counter() - start) >= seconds:
                    break
            slot = arena.take()
            out = arena.view(slot, extent.nbytes)
            group = model.group(extent.group)
            pending = prefetcher.start(group, extent.first, extent.count, out)
            under_way.append((pending, slot, extent.nbytes))
        for pending, _, _ in under_way:
            pending.cancel()
    arena.close()
    return done / spent
