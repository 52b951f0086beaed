"""One run of a contender of compare_peers.py: cold, in a group of its own, token by token."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from decode_events import Event, read_event
from memcap import drop_caches, run
from memory_group import group
from peer_contenders import OVERHEAD, Contender

DROPPED = 2
"""Tokens at the start of a run that do not count: what is pinned or compiled still comes in."""


@dataclasses.dataclass
class Run:
    """What a run of `contender` took.

    share: of the weights, as the cap was asked for. cap_bytes: None without a cap. read_ahead_kb:
    of the disk. outcome: "ok", "killed", "time limit" or "failed", and `note` how. loaded: None if
    it was not. memory: what memcap.run tells. round: runs of one round are pairs.
    disk_bytes_per_s: of the disk at that time.
    """

    contender: str
    engine: str
    share: float
    read_ahead_kb: int | None
    cap_bytes: int | None
    weight_bytes: int
    scanned_bytes: int
    command: list[str]
    outcome: str
    note: str
    loaded: Event | None
    tokens: list[Event]
    memory: dict[str, Any]
    round: int = 0
    disk_bytes_per_s: float = 0.0

    @property
    def steady(self) -> list[Event]:
        """The tokens that count."""
        return self.tokens[DROPPED:]

    @property
    def seconds(self) -> float:
        """Seconds a token, on average."""
        return statistics.fmean(token.seconds for token in self.steady)

    @property
    def read_bytes(self) -> float:
        """Bytes read for a token, on average."""
        return statistics.fmean(token.read_bytes for token in self.steady)

    @property
    def written_bytes(self) -> int:
        """Bytes written to disk since it was loaded."""
        return sum(token.written_bytes for token in self.tokens)

    @property
    def bound(self) -> float:
        """Seconds a token if what fits stays in memory and the rest is read at the disk's rate."""
        if self.cap_bytes is None:
            return 0.0
        return max(0, self.scanned_bytes + OVERHEAD - self.cap_bytes) / self.disk_bytes_per_s

    @property
    def naive(self) -> float:
        """Seconds a token if all weights are read at the disk's rate."""
        return self.scanned_bytes / self.disk_bytes_per_s


def run_contender(
    contender: Contender,
    model: Path,
    share: float,
    cap: int,
    tokens: list[int],
    time_limit: float,
    on_event: Callable[[Event], None],
) -> Run:
    """Run it on `model`, cold, for `time_limit` seconds at most. Needs root.

    on_event is called for each event, on another thread. The round and what the disk is like are
    left to the caller.
    """
    limit = cap if contender.capped else None
    command = contender.command(model, limit, ",".join(map(str, tokens)))
    events: list[Event] = []

    def on_line(line: str) -> None:
        if event := read_event(line):
            events.append(event)
            on_event(event)

    drop_caches()
    with tempfile.TemporaryFile("w+", errors="replace") as complaints, group() as capped:
        if limit is not None:
            capped.limit(limit)
        took = run(capped, command, time_limit, on_line, complaints)
        complaints.seek(0)
        said = [line.strip() for line in complaints if line.strip()]
    loaded = next((event for event in events if event.event == "loaded"), None)
    decoded = [event for event in events if event.event == "token"]
    outcome, note = ending(took, len(decoded), len(tokens), loaded is not None, said)
    return Run(
        contender=contender.name,
        engine=contender.engine,
        share=share,
        read_ahead_kb=None,
        cap_bytes=limit,
        weight_bytes=contender.weights.nbytes,
        scanned_bytes=contender.weights.scanned,
        command=command,
        outcome=outcome,
        note=note,
        loaded=loaded,
        tokens=decoded,
        memory=took,
    )


def ending(
    took: dict[str, Any], decoded: int, asked: int, loaded: bool, said: list[str]
) -> tuple[str, str]:
    """How a run ended, in a word and in a note."""
    where = f"after {decoded} of {asked} tokens" if loaded else "while loading"
    if took["kills"]:
        return "killed", f"killed for memory {where}, {took['seconds']:.0f} s"
    if took["timed_out"]:
        return "time limit", f"stopped {where}, {took['seconds']:.0f} s"
    if took["code"] or decoded < asked:
        return "failed", f"exit code {took['code']} {where}: {said[-1] if said else 'no message'}"
    return "ok", ""
