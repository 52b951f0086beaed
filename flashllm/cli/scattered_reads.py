"""How fast the disk gives back neurons from here and there: reads as a sparse run makes them."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np

from flashllm.flash.format import read_model
from flashllm.flash.reader import UnitReader
from flashllm.flash.scatter import ScatteredReader
from flashllm.kernels.memory import huge_buffer
from flashllm.model.config import ModelConfig


def measure(path: Path, share: float, gap: int, io: str, seconds: float) -> float:
    """Bytes per second of reading a `share` of each layer's units, other random ones each time.

    Layer after layer for at least `seconds`, each unit verified; units with at most `gap` bytes
    between them are read together, and these bytes count. Takes memory for what is read of a layer.
    Raises CorruptModel, ModelIOError, InvalidInput.
    """
    model = read_model(path)
    config = ModelConfig.from_json(model.manifest.config)
    groups = [model.group(f"layers.{i}.ffn") for i in range(config.n_layers)]
    slot = max(int(np.diff(group.offsets).max()) for group in groups)
    counts = [min(group.units, max(1, round(share * group.units))) for group in groups]
    memory, places = huge_buffer(max(counts) * slot), np.arange(max(counts)) * slot
    random = np.random.default_rng(0)
    turns = itertools.cycle(list(zip(groups, counts, strict=True)))
    done, spent, start = 0, -1.0, time.perf_counter()
    with UnitReader(model, io) as reader, ScatteredReader(reader) as scattered:
        while spent < seconds:
            group, count = next(turns)
            units = np.sort(random.choice(group.units, count, replace=False))
            read = scattered.start(group, units, memory.data, places[:count], gap)
            for _, _, error in read.join():
                raise error
            done += read.nbytes
            spent = time.perf_counter() - start
    return done / spent
