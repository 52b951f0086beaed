"""Tables 2 and 3 of "LLM in a flash" (arXiv 2312.11514) for a model of make_sparse.py.

    python tools/bench_sparse.py MODEL --share 0.5 --rounds 3
    python tools/bench_sparse.py MODEL --share 0.6 --window 4 --only naive all

Under a real memory cap of that share of the weights and 0.2 GB, cold, rung by rung, in turns:
  naive       every weight is read for every token, by the same engine with the least memory
  hybrid      what fits stays, the rest is streamed: exact and dense
  +predictor  only neurons that the predictor expects; a read for each row and each column
  +window     those of the last tokens stay
  +bundle     row and column by one read, near neurons joined
  all         reads begin before attention, by what the predictor says of what enters the layer;
              a planted model's would always be right: here as often as the trained model's are
The first table is about reads alone: those of the sparse rungs are replayed without computing, as
the paper measures them; the dense ones never leave the disk idle. In the second, I/O is what
computing did not hide. Needs Linux, root, and a machine on which nothing else runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from direct_rate import direct_rate
from memcap import drop_caches, run
from memory_group import group

import flashllm
from flashllm.flash.format import read_model
from flashllm.sizes import SHARE_OVERHEAD

CHILD = Path(__file__).with_name("sparse_decode.py")
LEAST_SPARE = 8_000_000  # above what the plan of the least budget says: rounding of buffers
TIME_LIMIT_S = 900.0


@dataclasses.dataclass(frozen=True)
class Rung:
    """A way to run the model. least: with the least memory it works in, instead of the share."""

    name: str
    flags: tuple[str, ...]
    least: bool = False


SPARSE = ("--sparse", "predictor")
APART = (*SPARSE, "--apart", "--gap", "0")
RUNGS = (
    Rung("naive", (), least=True),
    Rung("hybrid", ()),
    Rung("+predictor", (*APART, "--window", "0")),
    Rung("+window", APART),
    Rung("+bundle", SPARSE),
    Rung("all", (*SPARSE, "--foresight", "0.1")),
)


@dataclasses.dataclass
class Result:
    """What a rung took, a token; bytes and seconds. reads: replayed alone, None of dense rungs."""

    rung: str
    seconds: float
    read: float
    wait: float
    manage: float
    active: float | None
    anonymous: int
    kills: int
    replay: dict[str, float] | None
    disk: float


def main() -> None:
    """Run the rungs in turns and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--window", type=int, help="at most so many tokens, as the paper's k")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--only", nargs="+", choices=[rung.name for rung in RUNGS])
    parser.add_argument("--json", type=Path, help="also write every run here, as it ends")
    options = parser.parse_args()
    weights = read_model(options.model).unit_bytes
    cap = int(options.share * weights) + SHARE_OVERHEAD
    chosen = [rung for rung in RUNGS if rung.name in (options.only or [r.name for r in RUNGS])]
    results: list[Result] = []
    for number in range(1, options.rounds + 1):
        for rung in chosen:
            results.append(measure(options, rung, cap))
            last = results[-1]
            print(
                f"round {number}, {rung.name}: {last.seconds * 1e3:.0f} ms, "
                f"{last.read / 1e6:.0f} MB, disk {last.disk / 1e9:.2f} GB/s",
                file=sys.stderr,
                flush=True,
            )
            if options.json:
                kept = [dataclasses.asdict(result) for result in results]
                options.json.write_text(json.dumps(kept, indent=1))
    print(f"cap {cap:,} bytes: {options.share:g} x {weights:,} + {SHARE_OVERHEAD:,}")
    print(tables(results))


def measure(options: argparse.Namespace, rung: Rung, cap: int) -> Result:
    """One run of a rung, cold, in a group of its own."""
    model: Path = options.model
    largest = max(model.glob("units-*"), key=lambda path: path.stat().st_size)
    disk = direct_rate(largest, 1.0)
    mem = cap
    if rung.least:
        plan = flashllm.plan(model, mem_budget=cap, n_ctx=options.tokens + 8)
        mem = plan.smallest_budget + LEAST_SPARE
    tokens = 4 if rung.least else options.tokens
    window = ["--window", str(options.window)] if options.window is not None else []
    flags = [*rung.flags, *(window if rung.flags and "--window" not in rung.flags else [])]
    command = [sys.executable, str(CHILD), str(model), "--mem", str(mem), *flags]
    command += ["--tokens", str(tokens), "--warm", "1" if not rung.flags else "8"]
    events: list[dict[str, Any]] = []
    drop_caches()
    with tempfile.TemporaryFile("w+", errors="replace") as complaints, group() as capped:
        capped.limit(cap)
        took = run(capped, command, TIME_LIMIT_S, lambda line: note(line, events), complaints)
        complaints.seek(0)
        said = complaints.read().strip().splitlines()
    if took["code"]:
        sys.exit(f"{rung.name}: exit code {took['code']}: {said[-1] if said else 'no message'}")
    decoded = [event for event in events if event["event"] == "token"]
    replays = [event for event in events if event["event"] == "replay"]

    def mean(name: str) -> float:
        return statistics.fmean(event.get(name, 0.0) for event in decoded)

    return Result(
        rung.name,
        mean("seconds"),
        mean("read"),
        mean("wait"),
        mean("manage"),
        mean("active") if rung.flags else None,
        took["peak_anonymous_bytes"],
        took["kills"],
        replays[0] if replays else None,
        (disk + direct_rate(largest, 1.0)) / 2,
    )


def note(line: str, events: list[dict[str, Any]]) -> None:
    """Keep what a line of the child tells."""
    if line.startswith('{"event"'):
        events.append(json.loads(line))


def tables(results: list[Result]) -> str:
    """Both tables; medians of the rounds."""
    names = list(dict.fromkeys(result.rung for result in results))
    by_name = {name: [r for r in results if r.rung == name] for name in names}
    reads = [("", "DRAM GB", "MB/token", "GB/s", "of disk", "I/O ms", "reads", "active", "kills")]
    spent = [("", "I/O ms", "memory ms", "compute ms", "total ms", "tok/s", "naive takes")]
    for name, runs in by_name.items():
        reads.append((name, *_of_reads(runs)))
        seconds = median(r.seconds for r in runs)
        rest = median(r.seconds - r.wait - r.manage for r in runs)
        times = [
            n.seconds / r.seconds for n, r in zip(by_name.get("naive", []), runs, strict=False)
        ]
        spent.append(
            (
                name,
                f"{median(r.wait for r in runs) * 1e3:.0f}",
                f"{median(r.manage for r in runs) * 1e3:.0f}",
                f"{rest * 1e3:.0f}",
                f"{seconds * 1e3:.0f}",
                f"{1 / seconds:.2f}",
                f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})" if times else "-",
            )
        )
    return f"{aligned(reads)}\n\n{aligned(spent)}"


def _of_reads(runs: list[Result]) -> tuple[str, ...]:
    """A line of the first table. Reads that attention hides have no time of their own."""
    active = [r.active for r in runs if r.active is not None]
    alone = [r.replay or {"seconds": r.seconds, "read": r.read, "reads": 0} for r in runs]
    hidden = bool(active) and runs[0].replay is None
    seconds = median(r["seconds"] for r in alone)
    nbytes = median(r["read"] for r in alone)
    of_disk = median(
        r["read"] / r["seconds"] / run.disk for r, run in zip(alone, runs, strict=True)
    )
    return (
        f"{median(r.anonymous for r in runs) / 1e9:.2f}",
        f"{nbytes / 1e6:.0f}",
        "-" if hidden else f"{nbytes / seconds / 1e9:.2f}",
        "-" if hidden else f"{of_disk:.0%}",
        "-" if hidden else f"{seconds * 1e3:.0f}",
        f"{median(r['reads'] for r in alone):.0f}" if active and not hidden else "-",
        f"{median(active):.1%}" if active else "-",
        str(sum(r.kills for r in runs)),
    )


def median(values: Any) -> float:
    """The median of some numbers."""
    return float(statistics.median(list(values)))


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Rows as lines of a table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


if __name__ == "__main__":
    main()
