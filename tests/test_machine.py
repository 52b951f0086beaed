"""Tests of machine.py: what the system's own files say, read for every kind of system."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flashllm import machine


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_smallest_v2_limit_above_the_process_counts(tmp_path: Path) -> None:
    membership = put(tmp_path / "self", "0::/a/b\n")
    put(tmp_path / "fs/a/memory.max", "2000\n")
    put(tmp_path / "fs/a/b/memory.max", "max\n")
    assert machine.cgroup_memory_limit(tmp_path / "fs", membership) == 2000


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    membership = put(tmp_path / "self", "0::/../../elsewhere\n")
    put(tmp_path / "fs/memory.max", "512\n")
    assert machine.cgroup_memory_limit(tmp_path / "fs", membership) == 512


def test_v1_limits_and_its_word_for_unlimited(tmp_path: Path) -> None:
    membership = put(tmp_path / "self", "5:cpu,cpuacct:/x\n4:memory:/x\n")
    put(tmp_path / "fs/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert machine.cgroup_memory_limit(tmp_path / "fs", membership) is None
    put(tmp_path / "fs/memory/x/memory.limit_in_bytes", "4096\n")
    assert machine.cgroup_memory_limit(tmp_path / "fs", membership) == 4096


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert machine.cgroup_memory_limit(nowhere, nowhere) is None
    assert machine.cgroup_cpu_quota(nowhere, nowhere) is None
    facts = machine.memory(nowhere, nowhere)
    assert facts.cgroup_limit is None
    assert facts.usable == facts.available
    assert 0 < facts.available <= facts.total


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"x/cpu.max": "150000 100000"}, 1.5),
        ({"x/cpu.max": "max 100000"}, None),
        ({"x/cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_v2_cpu_quota(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        put(tmp_path / "fs" / name, text)
    membership = put(tmp_path / "self", "0::/x\n")
    assert machine.cgroup_cpu_quota(tmp_path / "fs", membership) == quota


def test_v1_cpu_quota(tmp_path: Path) -> None:
    membership = put(tmp_path / "self", "5:cpu,cpuacct:/\n")
    put(tmp_path / "fs/cpu/cpu.cfs_quota_us", "200000")
    put(tmp_path / "fs/cpu/cpu.cfs_period_us", "100000")
    assert machine.cgroup_cpu_quota(tmp_path / "fs", membership) == 2.0
    put(tmp_path / "fs/cpu/cpu.cfs_quota_us", "-1")
    assert machine.cgroup_cpu_quota(tmp_path / "fs", membership) is None


def test_usable_memory_is_the_tighter_of_free_and_limit() -> None:
    assert machine.Memory(total=100, available=60, cgroup_limit=40).usable == 40
    assert machine.Memory(total=100, available=60, cgroup_limit=80).usable == 60


def test_two_threads_of_one_core_are_one_physical_core(tmp_path: Path) -> None:
    for core, siblings in {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}.items():
        put(tmp_path / f"cpu{core}/topology/thread_siblings_list", siblings)
    assert machine.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert machine.physical_cores({0, 2}, tmp_path) == 1


def test_physical_cores_without_a_topology_never_exceed_the_logical_ones(tmp_path: Path) -> None:
    assert 1 <= machine.physical_cores({0}, tmp_path) <= 1
    assert machine.physical_cores(range(4096), tmp_path) >= 1


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_some_core_runs_us(system: str) -> None:
    assert len(machine.logical_cores(system)) >= 1


def test_a_quota_limits_the_threads_worth_starting() -> None:
    def usable(physical: int, quota: float | None) -> int:
        return machine.CPU("x", "x86_64", 8, physical, quota).usable_cores

    assert usable(4, None) == 4
    assert usable(4, 1.5) == 2
    assert usable(4, 64.0) == 4
    assert usable(4, 0.1) == 1


def test_this_machine_has_a_processor() -> None:
    facts = machine.cpu()
    assert facts.name
    assert 1 <= facts.usable_cores <= facts.logical_cores


def test_cpu_name_is_read_or_guessed(tmp_path: Path) -> None:
    info = put(tmp_path / "cpuinfo", "processor\t: 0\nmodel name\t: Quick One 9000\n")
    assert machine.cpu_name(info) == "Quick One 9000"
    assert machine.cpu_name(tmp_path / "none", system="darwin")
    assert machine.cpu_name(tmp_path / "none", system="win32")


def test_peak_memory_is_at_least_what_is_held() -> None:
    held = machine.rss()
    assert machine.peak_rss() >= held // 2 > 1 << 20


def test_file_backed_memory_is_part_of_what_is_held() -> None:
    shared = machine.file_backed_rss()
    assert shared is None or 0 <= shared <= 2 * machine.rss()


def test_memory_without_a_file_is_private_whoever_might_share_it(tmp_path: Path) -> None:
    before = machine.private_rss()
    with mmap.mmap(-1, 64 << 20) as region:  # shared memory, as Python has it
        region.write(b"x" * (64 << 20))
        assert machine.private_rss() - before > 48 << 20
    status = tmp_path / "status"
    status.write_text("VmRSS:\t 99 kB\nRssAnon:\t 1 kB\nRssFile:\t 7 kB\nRssShmem:\t 2 kB\n")
    assert machine.file_backed_rss(status) == 7 << 10
    assert machine.file_backed_rss(tmp_path / "missing") is None


GB = 10**9


def test_what_a_container_leaves(tmp_path: Path) -> None:
    """Files in the page cache count as free, and the group above counts as well."""
    fs, membership = tmp_path / "fs", put(tmp_path / "self", "0::/a/b\n")
    put(fs / "a/memory.max", "3000")
    put(fs / "a/memory.current", "2000")
    put(fs / "a/b/memory.max", "2500")
    put(fs / "a/b/memory.current", "2000")
    assert machine.cgroup_memory_free(fs, membership) == 500
    stat = "anon 900\nfile 900\nactive_file 400\ninactive_file 300\nslab\nactive_file_x y\n"
    put(fs / "a/b/memory.stat", stat)
    assert machine.cgroup_memory_free(fs, membership) == 1000
    put(fs / "a/memory.stat", stat)
    assert machine.cgroup_memory_free(fs, membership) == 1200
    put(fs / "a/memory.current", "9999")
    assert machine.cgroup_memory_free(fs, membership) == 0
    assert machine.memory(fs, membership).usable == 0
    put(fs / "a/memory.max", "max")
    put(fs / "a/b/memory.current", "nonsense")
    assert machine.cgroup_memory_free(fs, membership) is None


def test_what_a_v1_container_leaves(tmp_path: Path) -> None:
    fs, membership = tmp_path / "fs", put(tmp_path / "self", "4:memory:/x\n")
    put(fs / "memory/memory.limit_in_bytes", "9223372036854771712")
    put(fs / "memory/memory.usage_in_bytes", "1")
    put(fs / "memory/x/memory.limit_in_bytes", "1000")
    put(fs / "memory/x/memory.usage_in_bytes", "900")
    put(fs / "memory/x/memory.stat", "active_file 5\ntotal_active_file 100\ntotal_inactive_file 50")
    assert machine.cgroup_memory_free(fs, membership) == 250


def test_a_budget_that_leaves_others_room() -> None:
    free = machine.Memory(total=16 * GB, available=10 * GB, cgroup_limit=None)
    assert machine.auto_budget(free, GB) == GB + 10 * GB - 16 * GB // 20
    small = machine.Memory(total=2 * GB, available=GB, cgroup_limit=None)
    assert machine.auto_budget(small, 0) == GB - 256_000_000
    full = machine.Memory(total=16 * GB, available=0, cgroup_limit=None)
    assert machine.auto_budget(full, GB) == GB - 16 * GB // 20
    assert machine.auto_budget(full, 0) == 1
    limited = machine.Memory(16 * GB, 10 * GB, cgroup_limit=4 * GB, cgroup_free=3 * GB)
    kernel = 16_000_000 + 80_000_000
    assert machine.auto_budget(limited, GB // 2) == 3 * GB + GB // 2 - kernel
    assert machine.auto_budget(limited, 2 * GB) == 4 * GB - kernel  # never above the limit
    unknown = machine.Memory(16 * GB, 10 * GB, cgroup_limit=4 * GB)
    assert machine.auto_budget(unknown, GB) == 4 * GB - kernel


def test_peak_memory_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=123))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert machine.peak_rss("win32") == 123


def test_disk_traffic_is_counted_or_unknown() -> None:
    traffic = machine.disk_traffic()
    assert traffic is None or min(traffic.read, traffic.written) >= 0
    assert machine.disk_traffic(SimpleNamespace()) is None  # as on macOS


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a" / "b") > 0
