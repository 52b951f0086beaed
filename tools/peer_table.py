"""What compare_peers.py found, as tables: one for each cap and read-ahead, ratios to ours."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from peer_contenders import OVERHEAD
from peer_run import Run

OURS = "flashllm"
IN_MEMORY = "flashllm-in-memory"

COLUMNS = (
    "contender",
    "s/token",
    "(min to max)",
    "tok/s",
    "MB/token",
    "disk GB/s",
    "bound s",
    "of bound",
    "naive s",
    "x ours",
    "peak GB",
    "anon GB",
    "kills",
    "MB written",
    "load s",
)
LEGEND = f"""\
s/token: mean of the steady tokens of a run, the median of runs; the range is of single tokens.
bound: (weights a token needs + {OVERHEAD / 1e9} GB - cap) / the disk's rate around that run; naive:
all of them at that rate. of bound: the bound over s/token, or the time in memory where that is
longer and was measured. x ours: how many times as long it takes, pair by pair. anon: what could not
have been dropped. MB written: while decoding."""


def tables(runs: list[Run]) -> str:
    """All tables, and what they mean."""
    blocks = dict.fromkeys((run.read_ahead_kb, run.share) for run in runs)
    return "\n\n".join([*(table(block_of(runs, *block)) for block in blocks), LEGEND])


def block_of(runs: list[Run], read_ahead_kb: int | None, share: float) -> list[Run]:
    """The runs of one table."""
    return [run for run in runs if (run.read_ahead_kb, run.share) == (read_ahead_kb, share)]


def table(runs: list[Run]) -> str:
    """The table of runs under one cap, and the best of each engine beside ours."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.contender, []).append(run)
    in_memory = [run.seconds for run in by_name.get(IN_MEMORY, []) if run.steady]
    compute = statistics.median(in_memory) if in_memory else 0.0
    ours = by_name.get(OURS, [])
    rows = [COLUMNS, *(row(name, found, ours, compute) for name, found in by_name.items())]
    widths = [max(len(line[i]) for line in rows) for i in range(len(COLUMNS))]
    lines = [heading(runs)]
    for name, *cells in rows:
        shown = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown]))
    said = [f"{name}: {note}" for name, found in by_name.items() for note in notes(found)]
    return "\n".join([*lines, *said, *bests(by_name, ours)])


def heading(runs: list[Run]) -> str:
    """What the runs of a table have in common."""
    weights: dict[int, set[int]] = {}
    for run in runs:
        if run.cap_bytes is not None:
            weights.setdefault(run.cap_bytes, set()).add(run.weight_bytes)
    said = " or ".join(
        f"{cap:,} bytes (weights {' or '.join(f'{each:,}' for each in sorted(found))})"
        for cap, found in sorted(weights.items())
    )
    ahead = runs[0].read_ahead_kb
    disk = "read-ahead unknown" if ahead is None else f"read-ahead {ahead} KiB"
    return f"cap {runs[0].share:g}x: {said or 'none'}; {disk}"


def row(name: str, runs: list[Run], ours: list[Run], compute: float) -> tuple[str, ...]:
    """The cells of a contender."""
    done = [run for run in runs if run.steady]
    if not done:
        cells = ["-"] * 9
        load = [run.loaded.seconds for run in runs if run.loaded]
    else:
        singles = [token.seconds for run in done for token in run.steady]
        seconds = statistics.median(run.seconds for run in done)
        cells = [
            f"{seconds:.3f}",
            f"({min(singles):.3f} to {max(singles):.3f})",
            f"{1 / seconds:.3f}",
            f"{statistics.median(run.read_bytes for run in done) / 1e6:.0f}",
            f"{statistics.median(run.disk_bytes_per_s for run in done) / 1e9:.2f}",
            f"{statistics.median(run.bound for run in done):.3f}",
            of_bound(done, compute),
            f"{statistics.median(run.naive for run in done):.3f}",
            ratio(done, ours),
        ]
        load = [run.loaded.seconds for run in done if run.loaded]
    return (
        name,
        *cells,
        f"{max(run.memory['peak_bytes'] for run in runs) / 1e9:.2f}",
        f"{max(run.memory['peak_anonymous_bytes'] for run in runs) / 1e9:.2f}",
        str(sum(run.memory["kills"] for run in runs)),
        f"{max(run.written_bytes for run in runs) / 1e6:.1f}",
        f"{statistics.median(load):.1f}" if load else "-",
    )


def of_bound(runs: list[Run], compute: float) -> str:
    """How near the runs come to what disk and processor allow."""
    shares = [max(run.bound, compute) / run.seconds for run in runs if run.cap_bytes is not None]
    return f"{statistics.median(shares):.0%}" if any(shares) else "-"


def ratios(runs: list[Run], ours: list[Run]) -> list[float]:
    """Their time over ours, for each round in which both have steady tokens."""
    own = {run.round: run.seconds for run in ours if run.steady}
    return [run.seconds / own[run.round] for run in runs if run.steady and run.round in own]


def ratio(runs: list[Run], ours: list[Run]) -> str:
    """The median of the ratios."""
    found = ratios(runs, ours)
    return f"{statistics.median(found):.2f}" if found else "-"


def notes(runs: Iterable[Run]) -> list[str]:
    """What went wrong, each thing once."""
    return list(dict.fromkeys(run.note for run in runs if run.note))


def bests(by_name: dict[str, list[Run]], ours: list[Run]) -> list[str]:
    """For each other engine, its fastest mode beside ours."""
    engines: dict[str, list[tuple[float, str]]] = {}
    for name, runs in by_name.items():
        done = [run.seconds for run in runs if run.steady]
        if done and runs[0].engine != OURS:
            engines.setdefault(runs[0].engine, []).append((statistics.median(done), name))
    lines = []
    for engine, found in engines.items():
        _, name = min(found)
        pairs = ratios(by_name[name], ours)
        if pairs:
            times = " ".join(f"{pair:.2f}" for pair in pairs)
            lines.append(
                f"{engine} at its best, {name}: takes {statistics.median(pairs):.2f} times as long"
                f" as flashllm (pairs {times})"
            )
    return lines
