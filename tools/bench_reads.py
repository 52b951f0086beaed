"""How fast weights are read ahead, and at what cost, beside plain reads of the same bytes.

    python tools/bench_reads.py MODEL [--io auto] [--warm] [--gb 1] [--sizes 1,2,4] [--threads 4,8]

Both read runs of units in the model's order, by as many threads, into the same slots in turn: plain
is os.preadv and no more, ahead is flash/prefetch.py, which also verifies every unit. They
alternate, and a round's ratio is of two neighbours in time. The page cache is dropped before each,
or filled with --warm.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import itertools
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from flashllm.flash.format import FlashModel, Group, read_model
from flashllm.flash.prefetch import Pending, Prefetcher
from flashllm.flash.reader import IO_MODES, UnitReader
from flashllm.kernels.memory import growing_buffer, huge_buffer


@dataclasses.dataclass(frozen=True)
class Run:
    """Some consecutive units of a group."""

    group: Group
    first: int
    count: int

    @property
    def place(self) -> tuple[str, int, int]:
        """The file, where in it, and how many bytes."""
        begin, end = (int(self.group.offsets[i]) for i in (self.first, self.first + self.count))
        return self.group.file, self.group.file_offset + begin, end - begin


def main() -> None:
    """Measure each case a few times, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--io", choices=IO_MODES, default="direct")
    parser.add_argument("--warm", action="store_true", help="with the files in the page cache")
    parser.add_argument("--gb", type=float, default=1.0, help="to read each time, at most")
    parser.add_argument("--sizes", default="1,2,4", help="of a read, MiB")
    parser.add_argument("--threads", default="4,8")
    parser.add_argument("--small-pages", action="store_true", help="read into pages of 4 KiB")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = read_model(options.model)
    set_cache = fill_cache if options.warm else drop_cache
    for size in map(float, options.sizes.split(",")):
        runs = list(take(model, int(size * (1 << 20)), options.gb * 1e9))
        for threads in map(int, options.threads.split(",")):
            rounds = []
            for _ in range(options.rounds):
                pair = []
                for way in (ahead, plain):
                    set_cache(model)
                    pair.append(measure(way, model, runs, threads, options.io, options.small_pages))
                rounds.append(pair)
            report(f"{size:g} MiB x {threads}", rounds)


def take(model: FlashModel, size: int, most: float) -> Iterator[Run]:
    """Runs of about `size` bytes that cover each group evenly, until they are `most` bytes."""
    taken = 0.0
    for group in model.groups.values():
        pieces = min(group.units, max(1, round(int(group.offsets[-1]) / size)))
        bounds = [group.units * i // pieces for i in range(pieces + 1)]
        for first, end in itertools.pairwise(bounds):
            if taken >= most:
                return
            run = Run(group, first, end - first)
            taken += run.place[2]
            yield run


def measure(
    way: Callable[..., None],
    model: FlashModel,
    runs: list[Run],
    threads: int,
    io: str,
    small_pages: bool,
) -> tuple[float, float]:
    """Bytes per second, and CPU seconds per byte."""
    total = sum(run.place[2] for run in runs)
    slots = buffers(2 * threads + 2, max(run.place[2] for run in runs), small_pages)
    with UnitReader(model, io) as reader:
        reader.read([(run.place[0], 0, 1) for run in runs[:1]], [np.empty(1, np.uint8)])
        cpu, start = time.process_time(), time.perf_counter()
        way(reader, runs, threads, slots)
        spent = time.perf_counter() - start
    return total / spent, (time.process_time() - cpu) / total


def ahead(reader: UnitReader, runs: list[Run], threads: int, slots: list[np.ndarray]) -> None:
    """Through the prefetcher, each slot reused as soon as its read is done."""
    pending: collections.deque[Pending] = collections.deque()
    with Prefetcher(reader, threads) as prefetcher:
        for i, run in enumerate(runs):
            if len(pending) == len(slots):
                pending.popleft().wait()
            out = slots[i % len(slots)]
            pending.append(prefetcher.start(run.group, run.first, run.count, out))
        while pending:
            pending.popleft().wait()


def plain(reader: UnitReader, runs: list[Run], threads: int, slots: list[np.ndarray]) -> None:
    """os.preadv by threads that share a list."""
    direct = os.O_DIRECT if reader.io == "direct" else 0
    files = {run.group.file for run in runs}
    opened = {name: os.open(reader.model.path / name, os.O_RDONLY | direct) for name in files}
    todo = collections.deque(zip(runs, itertools.cycle(slots), strict=False))

    def work() -> None:
        while True:
            try:
                run, slot = todo.popleft()
            except IndexError:
                return
            name, offset, nbytes = run.place
            if os.preadv(opened[name], [slot[:nbytes].data], offset) != nbytes:
                print(f"{name}: a short read at {offset}")

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for fd in opened.values():
        os.close(fd)


def buffers(count: int, size: int, small_pages: bool) -> list[np.ndarray]:
    """Slots for reads, written to once so that the system has given them."""
    memory = growing_buffer(count * size) if small_pages else huge_buffer(count * size)
    memory.fill(1)
    return list(memory.reshape(count, size))


def drop_cache(model: FlashModel) -> None:
    """Have the system forget what it holds of the units' files."""
    for name in {group.file for group in model.groups.values()}:
        fd = os.open(model.path / name, os.O_RDWR)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def fill_cache(model: FlashModel) -> None:
    """Have the system hold all of the units' files, as far as it can."""
    for name in {group.file for group in model.groups.values()}:
        with (model.path / name).open("rb") as file:
            while file.read(16 << 20):
                pass


def report(case: str, rounds: list[list[tuple[float, float]]]) -> None:
    """A line of medians, and the ratio of the rates in each round."""
    ours, plainly = zip(*rounds, strict=True)
    fields = [
        f"{name} {statistics.median(rate for rate, _ in runs) / 1e9:.2f} GB/s, "
        f"{statistics.median(cpu for _, cpu in runs) * 1e9:.3f} CPU s/GB"
        for name, runs in (("ahead", ours), ("plain", plainly))
    ]
    ratios = " ".join(f"{a[0] / b[0]:.2f}" for a, b in rounds)
    print(f"{case:12} {fields[0]}; {fields[1]}; ratio {ratios}", flush=True)


if __name__ == "__main__":
    main()
