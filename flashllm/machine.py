"""What this computer is: its memory and limits, its processor, its disk. Facts, no decisions."""

from __future__ import annotations

import dataclasses
import math
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

if sys.platform != "win32":
    import resource

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
CPU_TOPOLOGY = Path("/sys/devices/system/cpu")
CPU_INFO = Path("/proc/cpuinfo")
PROCESS_STATUS = Path("/proc/self/status")

# cgroup v1 writes "no limit" as the largest multiple of a page in 63 bits.
_NO_LIMIT = 1 << 60
_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of memory: of the machine, free for new use now, and of its container, if limited.

    cgroup_free: what the container may still take, what it holds of files counted as free.
    """

    total: int
    available: int
    cgroup_limit: int | None
    cgroup_free: int | None = None

    @property
    def usable(self) -> int:
        """The most that this process may hope to take now."""
        limits = (self.available, self.cgroup_limit, self.cgroup_free)
        return min(limit for limit in limits if limit is not None)


@dataclasses.dataclass(frozen=True)
class CPU:
    """The processor: logical cores that this process may run on, and how many whole ones they are.

    quota is the number of cores' worth of time that a container allows, if it limits it.
    """

    name: str
    architecture: str
    logical_cores: int
    physical_cores: int
    quota: float | None

    @property
    def usable_cores(self) -> int:
        """How many threads can compute at once without sharing a core: at least 1."""
        allowed = math.ceil(self.quota) if self.quota else self.physical_cores
        return max(1, min(self.physical_cores, allowed))


def memory(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> Memory:
    """This machine's memory. `root` and `membership` are where Linux shows control groups."""
    system = psutil.virtual_memory()
    limit = cgroup_memory_limit(root, membership)
    return Memory(
        int(system.total), int(system.available), limit, cgroup_memory_free(root, membership)
    )


def auto_budget(memory: Memory, held: int) -> int:
    """The bytes that this process may use if it leaves other programs room: at least 1.

    held: what it holds already, without what the system can drop. Of the machine 5 % stay free,
    at least 256 MB: other programs grow, and a system that is out of memory drops the code of
    those that run before it ends one. Of a container 2 % and 16 MB, for the kernel's memory that
    counts as the container's: page tables alone are 0.2 %.
    """
    room = memory.available - max(256_000_000, memory.total // 20)
    if memory.cgroup_limit is not None:
        kernel = 16_000_000 + memory.cgroup_limit // 50
        free = memory.cgroup_limit - held if memory.cgroup_free is None else memory.cgroup_free
        room = min(room, free - kernel, memory.cgroup_limit - held - kernel)
    return max(1, held + room)


def cgroup_memory_limit(
    root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> int | None:
    """The smallest memory limit of the control groups above this process, v2 or v1, in bytes."""
    limits = []
    for folder, version in _cgroup_folders("memory", root, membership):
        text = _read(folder / ("memory.max" if version == 2 else "memory.limit_in_bytes"))
        if text.isdigit() and int(text) < _NO_LIMIT:
            limits.append(int(text))
    return min(limits, default=None)


def cgroup_memory_free(
    root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> int | None:
    """What the control groups above this process leave it to take, in bytes; None: no limit.

    Files in the page cache count as free: they are dropped before a limit ends anything.
    """
    found = []
    for folder, version in _cgroup_folders("memory", root, membership):
        names = ("memory.max", "memory.current") if version == 2 else _V1_MEMORY
        limit, used = (_read(folder / name) for name in names)
        if limit.isdigit() and used.isdigit() and int(limit) < _NO_LIMIT:
            statistics = dict(
                line.split()[:2]
                for line in _read(folder / "memory.stat").splitlines()
                if len(line.split()) == 2
            )
            prefix = "" if version == 2 else "total_"
            files = [statistics.get(f"{prefix}{kind}_file", "") for kind in ("active", "inactive")]
            dropped = sum(int(count) for count in files if count.isdigit())
            found.append(max(0, int(limit) - max(0, int(used) - dropped)))
    return min(found, default=None)


def cgroup_cpu_quota(
    root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP
) -> float | None:
    """The smallest processor quota of the control groups above this process, in cores."""
    quotas = []
    for folder, version in _cgroup_folders("cpu", root, membership):
        if version == 2:
            words = _read(folder / "cpu.max").split()
        else:
            words = [_read(folder / f"cpu.cfs_{what}_us") for what in ("quota", "period")]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _cgroup_folders(controller: str, root: Path, membership: Path) -> list[tuple[Path, int]]:
    """(folder, cgroup version) of this process's groups for `controller`, up to the root.

    A container may see its own group mounted as the root under a path it cannot follow; folders
    that do not exist simply read as empty.
    """
    folders: list[tuple[Path, int]] = []
    for line in _read(membership).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, version = root, 2
        elif controller in controllers.split(","):
            mount, version = root / controller, 1
        else:
            continue
        steps = [part for part in path.split("/") if part not in ("", "..")]
        folders += [(mount.joinpath(*steps[:depth]), version) for depth in range(len(steps) + 1)]
    return folders


def cpu() -> CPU:
    """This machine's processor, as far as this process may use it."""
    logical = logical_cores()
    return CPU(
        name=cpu_name(),
        architecture=platform.machine(),
        logical_cores=len(logical) or 1,
        physical_cores=physical_cores(logical),
        quota=cgroup_cpu_quota(),
    )


def logical_cores(system: str = sys.platform) -> frozenset[int]:
    """Numbers of the logical cores this process may run on; macOS has no affinity: all of them."""
    if system == "darwin":
        return frozenset(range(psutil.cpu_count() or 1))
    return frozenset(psutil.Process().cpu_affinity())


def physical_cores(logical: Collection[int], topology: Path = CPU_TOPOLOGY) -> int:
    """How many physical cores the `logical` ones lie on; `topology` is Linux's account of that."""
    siblings = {_read(topology / f"cpu{n}" / "topology" / "thread_siblings_list") for n in logical}
    if siblings and "" not in siblings:
        return len(siblings)
    return min(psutil.cpu_count(logical=False) or len(logical), len(logical)) or 1


def cpu_name(info: Path = CPU_INFO, system: str = sys.platform) -> str:
    """The processor's marketing name, or its architecture where it has none to show."""
    for line in _read(info).splitlines():
        label, _, value = line.partition(":")
        if label.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    if system == "darwin" and (name := _output(["sysctl", "-n", "machdep.cpu.brand_string"])):
        return name
    return platform.processor() or platform.machine() or "unknown processor"


def peak_rss(system: str = sys.platform) -> int:
    """The most memory this process has held at once so far, in bytes."""
    if system == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if system == "darwin" else peak * 1024  # kilobytes, but for macOS


def rss() -> int:
    """The memory this process holds now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def file_backed_rss(status: Path = PROCESS_STATUS) -> int | None:
    """The part of rss() that the system can drop and read again from files: libraries, mapped
    files. None where it cannot be told apart from private memory, as anywhere but on Linux."""
    for line in _read(status).splitlines():
        label, _, value = line.partition(":")
        if label == "RssFile" and value.split()[:1]:
            return int(value.split()[0]) * 1024  # "12 kB", in powers of 1024
    return None


def private_rss() -> int:
    """The memory this process holds that the system can at best swap out, in bytes.

    Where that cannot be told apart from mapped files, all that it holds.
    """
    return max(0, rss() - (file_backed_rss() or 0))


@dataclasses.dataclass(frozen=True)
class DiskTraffic:
    """Bytes that this process has moved to and from disks since it started."""

    read: int
    written: int


def disk_traffic(process: psutil.Process | None = None) -> DiskTraffic | None:
    """This process's disk traffic as the system counts it; None where it does not (macOS)."""
    try:
        counters = (process or psutil.Process()).io_counters()
    except (AttributeError, NotImplementedError, psutil.Error):
        return None
    return DiskTraffic(int(counters.read_bytes), int(counters.write_bytes))


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`, or would hold it once created."""
    existing = next(
        folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists()
    )
    return shutil.disk_usage(existing).free


def _read(path: Path) -> str:
    """The text of a small system file; empty if it is not there or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    """What `command` prints; empty if it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
