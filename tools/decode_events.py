"""The lines of JSON by which a program that decodes tells what each token cost: made, and read.

compare_peers.py runs such programs; llama_decode.cpp prints the same lines. It imports nothing but
the standard library, so that it runs in any environment and adds nothing to what is measured.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened ("loaded" or "token"), how long it took, and disk traffic meanwhile."""

    event: str
    seconds: float
    read_bytes: int
    written_bytes: int


class Meter:
    """Prints an event, with what has passed since the last one."""

    def __init__(self) -> None:
        """Begin to count."""
        self._last = time.perf_counter()
        self._read, self._written = disk_bytes()

    def tell(self, event: str) -> None:
        """Print `event` and begin anew."""
        seconds = time.perf_counter() - self._last
        read, written = disk_bytes()
        found = Event(event, seconds, read - self._read, written - self._written)
        print(json.dumps(dataclasses.asdict(found)), flush=True)
        self._read, self._written = read, written
        self._last = time.perf_counter()


def disk_bytes() -> tuple[int, int]:
    """Bytes that all threads of this process have had read and written."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    counts = {name: int(count) for name, count in lines}
    return counts["read_bytes"], counts["write_bytes"]


def read_event(line: str) -> Event | None:
    """The event that a line tells, or None if it is other output."""
    if not line.startswith('{"event"'):
        return None
    return Event(**json.loads(line))
