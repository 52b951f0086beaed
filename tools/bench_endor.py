"""The comparison of Endor (arXiv 2406.11674): a pruned model streamed as bitmaps, beside it whole.

    python tools/bench_endor.py DENSE PRUNED... [--share 0.5] [--rounds 2]

All are flash models of one shape; the cap is a share of DENSE's weights and 0.2 GB, for each. In
turns, cold, under a real memory limit: first with the least memory that each runs in, where, as in
the paper, every weight is read for every token; then with all that the cap allows. Transfer is what
the bytes of a token take at the disk's rate of that minute; waiting, what computing did not hide of
it; decompression, what expanding all bitmaps to tiles takes by itself, on two cores (products take
them as they are). Needs Linux, root, and a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from bench_sparse import Result, Rung, aligned, measure, median

from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.reader import UnitReader
from flashllm.kernels.expanding import expand_unit, tile_bytes
from flashllm.kernels.memory import OVERREAD
from flashllm.sizes import SHARE_OVERHEAD

LEAST, CAPPED = Rung("nothing pinned", (), least=True), Rung("capped", ())
CORES = 2


def main() -> None:
    """Run the models in turns and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--only", choices=("least", "capped"))
    options = parser.parse_args()
    weights = read_model(options.models[0]).unit_bytes
    cap = int(options.share * weights) + SHARE_OVERHEAD
    print(f"cap {cap:,} bytes: {options.share:g} x {weights:,} + {SHARE_OVERHEAD:,}")
    expanding = {path: decompression(read_model(path)) for path in options.models}
    for rung in {"least": [LEAST], "capped": [CAPPED]}.get(options.only, [LEAST, CAPPED]):
        results: dict[Path, list[Result]] = {path: [] for path in options.models}
        for number in range(1, options.rounds + 1):
            for path in options.models:
                asked = argparse.Namespace(model=path, tokens=options.tokens, window=None)
                results[path].append(measure(asked, rung, cap))
                last = results[path][-1]
                print(
                    f"{rung.name}, round {number}, {path.name}: {last.seconds:.3f} s, "
                    f"{last.read / 1e6:.0f} MB, disk {last.disk / 1e9:.2f} GB/s",
                    file=sys.stderr,
                    flush=True,
                )
        print(f"\n{rung.name}\n{table(results, expanding)}", flush=True)


def decompression(model: FlashModel) -> float:
    """Seconds that expanding all bitmaps of a model takes, from one layer's in memory."""
    first = [group for name, group in model.groups.items() if name.startswith("layers.0.")]
    layers = sum(name.endswith(".ffn") for name in model.groups)
    units = []
    with UnitReader(model) as reader:
        for group in first:
            for part in group.parts:
                if part.codec != "bitmap":
                    continue
                for i in range(part.units):
                    length = int(group.lengths[part.first_unit + i])
                    unit = np.zeros(length + OVERREAD, np.uint8)
                    reader.read_units(group, [part.first_unit + i], [unit])
                    panels = part.runs(i)
                    units.append((unit, length, panels, np.zeros(tile_bytes(panels), np.uint8)))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for unit in units:
            expand_unit(*unit)
        times.append(time.perf_counter() - start)
    return min(times) * layers / CORES


def table(results: dict[Path, list[Result]], expanding: dict[Path, float]) -> str:
    """A row for each model; medians of the rounds."""
    dense = next(iter(results.values()))
    head = ("", "MB/token", "disk GB/s", "transfer s", "waited s", "computed s", "decompr. s")
    rows = [(*head, "s/token", "dense takes", "anon GB", "kills")]
    for path, runs in results.items():
        ratios = [a.seconds / b.seconds for a, b in zip(dense, runs, strict=True)]
        rows.append(
            (
                path.name,
                f"{median(r.read for r in runs) / 1e6:.0f}",
                f"{median(r.disk for r in runs) / 1e9:.2f}",
                f"{median(r.read / r.disk for r in runs):.3f}",
                f"{median(r.wait for r in runs):.3f}",
                f"{median(r.seconds - r.wait for r in runs):.3f}",
                f"{expanding[path]:.3f}" if expanding[path] else "-",
                f"{median(r.seconds for r in runs):.3f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{median(r.anonymous for r in runs) / 1e9:.2f}",
                str(sum(r.kills for r in runs)),
            )
        )
    return aligned(rows)


if __name__ == "__main__":
    main()
