"""Reads ahead: every read ends in bytes, in its error or dropped, whatever others do."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flashllm.flash.format import read_model
from flashllm.flash.prefetch import Prefetcher
from flashllm.flash.reader import UnitReader


def test_runs_are_the_bytes_of_the_file(pristine: Path) -> None:
    model = read_model(pristine)
    with UnitReader(model) as reader, Prefetcher(reader, 3) as ahead:
        for group in model.groups.values():
            raw = (pristine / group.file).read_bytes()[group.file_offset :]
            started = []
            for first in range(group.units):
                count = min(2, group.units - first)
                begin, end = int(group.offsets[first]), int(group.offsets[first + count])
                out = np.zeros(end - begin, np.uint8)
                started.append((ahead.start(group, first, count, out), out, raw[begin:end]))
            for pending, out, expected in started:
                pending.wait()
                assert pending.done
                assert out.tobytes() == expected
