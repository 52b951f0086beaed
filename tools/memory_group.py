"""Control groups that limit memory, of version 1 and 2, alike to whoever uses them.

What their files say: docs.kernel.org, admin-guide/cgroup-v1/memory.rst and
admin-guide/cgroup-v2.rst, "Memory".
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

ROOT = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62  # and above: what version 1 answers where no limit is set


class Sample(NamedTuple):
    """Memory of a group at one moment, in bytes.

    anonymous: what can only be swapped, not dropped: private memory, and shared memory without a
    file. locked: what cannot leave memory at all. total: with page cache and kernel memory.
    """

    anonymous: int
    locked: int
    total: int


class Group(Protocol):
    """A control group that limits memory."""

    path: Path

    def limit(self, nbytes: int) -> None:
        """Set the limit; nothing may be swapped out of it."""

    def limit_bytes(self) -> int | None:
        """The limit that holds: the one set, rounded down to pages; None without one."""

    def sample(self) -> Sample:
        """What it holds now."""

    def figures(self) -> dict[str, int]:
        """limit_hits, kills and, where the kernel keeps it, peak_bytes: of the group's life."""


class Version1:
    """The memory controller of version 1."""

    def __init__(self) -> None:
        self.path = ROOT / "memory" / f"memcap-{os.getpid()}"
        self.path.mkdir()

    def limit(self, nbytes: int) -> None:
        """Set the limit; nothing may be swapped out of it."""
        (self.path / "memory.swappiness").write_text("0")
        (self.path / "memory.limit_in_bytes").write_text(str(nbytes))

    def limit_bytes(self) -> int | None:
        """The limit that holds: the one set, rounded down to pages; None without one."""
        found = int((self.path / "memory.limit_in_bytes").read_text())
        return found if found < UNLIMITED else None

    def sample(self) -> Sample:
        """What it holds now."""
        stat = numbers(self.path / "memory.stat")
        total = int((self.path / "memory.usage_in_bytes").read_text())
        return Sample(stat["rss"] + stat.get("shmem", 0), stat["unevictable"], total)

    def figures(self) -> dict[str, int]:
        """limit_hits, kills and peak_bytes: of the group's life."""
        return {
            "limit_hits": int((self.path / "memory.failcnt").read_text()),
            "kills": numbers(self.path / "memory.oom_control").get("oom_kill", 0),
            "peak_bytes": int((self.path / "memory.max_usage_in_bytes").read_text()),
        }


class Version2:
    """The memory controller of version 2."""

    def __init__(self) -> None:
        unified = (ROOT / "cgroup.controllers").exists()
        root = ROOT if unified else ROOT / "unified"
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text("+memory")
        self.path = root / f"memcap-{os.getpid()}"
        self.path.mkdir()
        if not (self.path / "memory.max").exists():
            self.path.rmdir()
            raise OSError(
                f"{root}: its groups have no memory controller; run it outside containers"
            )

    def limit(self, nbytes: int) -> None:
        """Set the limit; nothing may be swapped out of it."""
        swap = self.path / "memory.swap.max"
        if swap.exists():  # only where the kernel accounts for swap
            swap.write_text("0")
        (self.path / "memory.max").write_text(str(nbytes))

    def limit_bytes(self) -> int | None:
        """The limit that holds: the one set, rounded down to pages; None without one."""
        found = (self.path / "memory.max").read_text().strip()
        return None if found == "max" else int(found)

    def sample(self) -> Sample:
        """What it holds now."""
        stat = numbers(self.path / "memory.stat")
        total = int((self.path / "memory.current").read_text())
        return Sample(stat["anon"] + stat["shmem"], stat["unevictable"], total)

    def figures(self) -> dict[str, int]:
        """limit_hits, kills and, since Linux 5.19, peak_bytes: of the group's life."""
        events = numbers(self.path / "memory.events")
        found = {"limit_hits": events["max"], "kills": events["oom_kill"]}
        peak = self.path / "memory.peak"
        return found | ({"peak_bytes": int(peak.read_text())} if peak.exists() else {})


@contextlib.contextmanager
def group() -> Iterator[Group]:
    """A control group, gone afterwards with all that is still in it."""
    try:
        made: Group = Version1() if (ROOT / "memory").is_dir() else Version2()
    except OSError as error:
        raise SystemExit(f"cannot make a control group: {error}") from None
    try:
        yield made
    finally:
        for _ in range(100):
            clear(made)
            try:
                made.path.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def clear(capped: Group) -> None:
    """Kill what is in the group."""
    for pid in (capped.path / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def numbers(path: Path, end: str = "") -> dict[str, int]:
    """A file of lines "name number", without the `end` of the names."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0].removesuffix(end): int(line[1]) for line in lines if len(line) == 2}
