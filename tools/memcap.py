"""Run a command under a real memory limit, page cache counted, and say what it took.

    python tools/memcap.py --limit 2GB -- flashllm convert DIR OUT --dtype q4

Makes a control group of its own (version 1 or 2; needs root), drops the page cache first unless
told not to, and prints one JSON object on standard error: exit code, seconds, the group's peak with
and without page cache, how often it ran into the limit, how many processes were killed for it, and
the disk's traffic. What is left of the group is killed and the group removed, whatever happens.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil

ROOT = Path("/sys/fs/cgroup")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
SAMPLE_S = 0.05


class Group(Protocol):
    """A control group that limits memory."""

    path: Path

    def limit(self, nbytes: int) -> None:
        """Set the limit."""

    def anonymous(self) -> int:
        """Bytes of memory in use that are no page cache."""

    def figures(self) -> dict[str, int]:
        """peak_bytes, limit_hits and kills."""


class Version1:
    """The memory controller of version 1."""

    def __init__(self) -> None:
        self.path = ROOT / "memory" / f"memcap-{os.getpid()}"
        self.path.mkdir()

    def limit(self, nbytes: int) -> None:
        """Set the limit."""
        (self.path / "memory.limit_in_bytes").write_text(str(nbytes))

    def anonymous(self) -> int:
        """Bytes of memory in use that are no page cache."""
        return numbers(self.path / "memory.stat")["rss"]

    def figures(self) -> dict[str, int]:
        """peak_bytes, limit_hits and kills."""
        return {
            "peak_bytes": int((self.path / "memory.max_usage_in_bytes").read_text()),
            "limit_hits": int((self.path / "memory.failcnt").read_text()),
            "kills": numbers(self.path / "memory.oom_control").get("oom_kill", 0),
        }


class Version2:
    """The memory controller of version 2."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            (ROOT / "cgroup.subtree_control").write_text("+memory")
        self.path = ROOT / f"memcap-{os.getpid()}"
        self.path.mkdir()

    def limit(self, nbytes: int) -> None:
        """Set the limit; nothing may be swapped out of it."""
        (self.path / "memory.max").write_text(str(nbytes))
        with contextlib.suppress(OSError):
            (self.path / "memory.swap.max").write_text("0")

    def anonymous(self) -> int:
        """Bytes of memory in use that are no page cache."""
        return numbers(self.path / "memory.stat")["anon"]

    def figures(self) -> dict[str, int]:
        """peak_bytes, limit_hits and kills."""
        events = numbers(self.path / "memory.events")
        peak = self.path / "memory.peak"  # since Linux 5.19
        return {
            "peak_bytes": int(peak.read_text()) if peak.exists() else -1,
            "limit_hits": events["max"],
            "kills": events["oom_kill"],
        }


def main() -> None:
    """Run the command and pass its exit code on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=size, required=True, help="such as 2GB or 512MiB")
    parser.add_argument("--warm", action="store_true", help="leave the page cache as it is")
    parser.add_argument("--kill-after", type=float, metavar="S", help="kill -9 after S seconds")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command")
    if not options.warm:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    with group() as capped:
        capped.limit(options.limit)
        found = run(capped, command, options.kill_after)
    print(json.dumps({"command": command, "limit_bytes": options.limit, **found}), file=sys.stderr)
    sys.exit(found["code"] if found["code"] >= 0 else 128 - found["code"])


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
            for pid in (made.path / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            try:
                made.path.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def run(capped: Group, command: list[str], kill_after: float | None) -> dict[str, Any]:
    """Run the command in the group; what it took."""

    def enter() -> None:
        (capped.path / "cgroup.procs").write_text("0")

    disk = psutil.disk_io_counters()
    start = time.perf_counter()
    process = subprocess.Popen(command, preexec_fn=enter)
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(SAMPLE_S):
            peak = max(peak, capped.anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        code = process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        code = process.wait()
    finally:
        over.set()
        watcher.join()
    seconds = time.perf_counter() - start
    after = psutil.disk_io_counters()
    traffic = {}
    if disk and after:
        traffic = {
            "disk_read_bytes": after.read_bytes - disk.read_bytes,
            "disk_written_bytes": after.write_bytes - disk.write_bytes,
        }
    return {
        "code": code,
        "seconds": round(seconds, 2),
        **capped.figures(),
        "peak_anonymous_bytes": peak,
        **traffic,
    }


def numbers(path: Path) -> dict[str, int]:
    """A file of lines "name number"."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) == 2}


def size(text: str) -> int:
    """Bytes, of text such as 2GB or 512MiB."""
    number = text.rstrip("BGIMKbgimk")
    unit = text[len(number) :].upper()
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size")
    return int(float(number) * UNITS[unit])


if __name__ == "__main__":
    main()
