"""Run a command under a real memory limit, page cache counted, and say what it took.

    python tools/memcap.py --limit 2GB -- flashllm convert DIR OUT --dtype q4

Makes a control group of its own (version 1 or 2; needs root), drops the page cache first unless
told not to, and prints one JSON object on standard error, also of a command that was killed:

  code, seconds, timed_out      how it ended
  limit_bytes                   the limit as the kernel holds it: the one asked for, in whole pages
  peak_bytes                    the group's peak, page cache and kernel memory included
  peak_anonymous_bytes          without what could be dropped (sampled every 20 ms)
  peak_locked_bytes             of what is pinned in memory, such as by mlock (sampled, too)
  limit_hits, kills             how often it ran into the limit, and processes killed for it
  read_bytes, written_bytes     of disks, by the command and the children it waited for
  disk_read_bytes, disk_written_bytes   of this machine's disks meanwhile, whoever caused it
  user_s, system_s              processor time of the command and the children it waited for

What is left of the group is killed and the group removed, whatever happens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from memory_group import Group, Sample, clear, group, numbers

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}
SAMPLE_S = 0.02
SECTOR = 512


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
        drop_caches()
    with group() as capped:
        capped.limit(options.limit)
        found = run(capped, command, options.kill_after)
    print(json.dumps({"command": command, **found}), file=sys.stderr)
    sys.exit(found["code"] if found["code"] >= 0 else 128 - found["code"])


def drop_caches() -> None:
    """Write out what is dirty and drop the page cache, the machine over. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def run(
    capped: Group,
    command: list[str],
    kill_after: float | None = None,
    on_line: Callable[[str], None] | None = None,
    stderr: IO[Any] | None = None,
) -> dict[str, Any]:
    """Run the command in the group; what it took, as main prints it.

    on_line: called with each line of its standard output, on another thread; without it the output
    goes where this program's goes. A KeyboardInterrupt leaves the rest to `group`.
    """

    def enter() -> None:
        (capped.path / "cgroup.procs").write_text("0")

    disk = disk_bytes()
    start = time.perf_counter()
    out = None if on_line is None else subprocess.PIPE
    process = subprocess.Popen(command, preexec_fn=enter, stdout=out, stderr=stderr, text=True)
    watch = Watch(capped, None if kill_after is None else start + kill_after)
    readers = [threading.Thread(target=watch.run, daemon=True)]
    if process.stdout and on_line:
        readers.append(
            threading.Thread(target=pass_on, args=(process.stdout, on_line), daemon=True)
        )
    for reader in readers:
        reader.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        seconds = time.perf_counter() - start
        moved = numbers(Path(f"/proc/{process.pid}/io"), ":")  # gone once it is waited for
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        watch.over.set()
        clear(capped)  # whatever it left running may hold its output open
        if process.returncode is None:
            process.wait()
        for reader in readers:
            reader.join()
        if process.stdout:
            process.stdout.close()
    after = disk_bytes()
    return {
        "code": process.returncode,
        "seconds": round(seconds, 2),
        "timed_out": watch.timed_out,
        "limit_bytes": capped.limit_bytes(),
        "peak_bytes": watch.peak.total,
        **capped.figures(),
        "peak_anonymous_bytes": watch.peak.anonymous,
        "peak_locked_bytes": watch.peak.locked,
        "read_bytes": moved["read_bytes"],
        "written_bytes": moved["write_bytes"] - moved["cancelled_write_bytes"],
        "disk_read_bytes": after[0] - disk[0],
        "disk_written_bytes": after[1] - disk[1],
        "user_s": round(usage.ru_utime, 2),
        "system_s": round(usage.ru_stime, 2),
    }


def pass_on(lines: IO[str], on_line: Callable[[str], None]) -> None:
    """Call on_line with each line until there are no more."""
    for line in lines:
        on_line(line)


class Watch:
    """Samples a group's memory, and kills what is in it at a deadline (of time.perf_counter)."""

    def __init__(self, capped: Group, deadline: float | None) -> None:
        self.over = threading.Event()
        self.peak = Sample(0, 0, 0)
        self.timed_out = False
        self._capped = capped
        self._deadline = deadline

    def run(self) -> None:
        """Until `over` is set."""
        while not self.over.wait(SAMPLE_S):
            now = self._capped.sample()
            self.peak = Sample(*map(max, self.peak, now))
            if self._deadline is not None and time.perf_counter() > self._deadline:
                self.timed_out = True
                clear(self._capped)


def disk_bytes() -> tuple[int, int]:
    """Bytes read from and written to this machine's disks since it started.

    Devices made of others, such as loop devices, are left out: theirs would count twice.
    """
    read = written = 0
    for disk in Path("/sys/block").iterdir():
        if (disk / "device").exists():
            counts = (disk / "stat").read_text().split()
            read += int(counts[2]) * SECTOR
            written += int(counts[6]) * SECTOR
    return read, written


def size(text: str) -> int:
    """Bytes, of text such as 2GB or 512MiB."""
    number = text.rstrip("BGIMKbgimk")
    unit = text[len(number) :].upper()
    if unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size")
    return int(float(number) * UNITS[unit])


if __name__ == "__main__":
    main()
