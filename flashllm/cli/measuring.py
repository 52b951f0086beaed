"""What this computer's disk and memory can do: measured once, kept, and found again."""

from __future__ import annotations

from pathlib import Path

import llvmlite

from flashllm import machine, read_speed_file
from flashllm.cli import disk_rate
from flashllm.cli.report import Report
from flashllm.disk_curve import DiskCurve
from flashllm.errors import FlashError
from flashllm.hub import store
from flashllm.read_speed import MemoryRate, ReadSpeed

_BUFFER = 1 << 30
"""To read memory with: larger than the last-level caches of ordinary machines."""


def read_speed(folder: Path, report: Report, *, anew: bool = False) -> ReadSpeed:
    """The speeds of this computer with the disk under `folder`: those kept, or measured now.

    A disk that could not be measured before is tried again if there is now a model to read.
    """
    kept_in = read_speed_file.file_for(folder)
    kept = None if anew else read_speed_file.load(kept_in)
    if kept and (kept.disk or not _models_on(folder)):
        return kept
    speed = ReadSpeed(_disk_curve(folder, report), _memory_rates(report))
    try:
        read_speed_file.save(speed, kept_in)
    except OSError as error:
        report.message(f"{kept_in}: cannot keep what was measured: {error.strerror}.")
    return speed


def _memory_rates(report: Report) -> tuple[MemoryRate, ...]:
    """Read rate of main memory with one thread and with all."""
    from flashllm.kernels import bandwidth

    report.message("measuring the memory's read rate")
    size = min(_BUFFER, machine.memory().usable // 4)
    counts = sorted({1, machine.cpu().usable_cores})
    return tuple(MemoryRate(count, bandwidth.measure(count, size) * 1e9) for count in counts)


def _disk_curve(folder: Path, report: Report) -> DiskCurve | None:
    """The read curve of the disk under `folder`, measured on the largest file that is known there.

    Nothing is written: without a model the compiler's library serves.
    """
    files = [file for model in _models_on(folder) for file in model.iterdir()]
    files += Path(llvmlite.__file__).parent.rglob("*")
    device = _device(folder)
    here = [file for file in files if file.is_file() and file.stat().st_dev == device]
    if not here:
        report.message("cannot measure the disk's read rate: no large file on it is known.")
        return None
    report.message("measuring the disk's read rate")
    largest = max(here, key=lambda file: file.stat().st_size)
    try:
        return disk_rate.measure(largest, disk_rate.SECONDS, report.progress)
    except FlashError as error:
        report.message(f"cannot measure the disk's read rate: {error}.")
        return None


def _models_on(folder: Path) -> list[Path]:
    """The model in `folder`, or those of the store."""
    return [folder] if store.is_model(folder) else [model.path for model in store.list_models()]


def _device(folder: Path) -> int:
    places = (folder.absolute(), *folder.absolute().parents)
    return next(place for place in places if place.exists()).stat().st_dev
