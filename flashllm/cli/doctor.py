"""flashllm doctor: this computer as flashllm sees it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from typing import Any

import click

from flashllm import machine
from flashllm.cli import curve_file, disk_rate
from flashllm.cli.main import version
from flashllm.cli.options import json_option
from flashllm.cli.report import Report
from flashllm.disk_curve import DiskCurve
from flashllm.errors import FlashError
from flashllm.hub import store
from flashllm.sizes import format_size

# Instruction sets that kernels choose between, by LLVM's names.
_FEATURES = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi2"),
    *("neon", "dotprod", "i8mm", "sve"),
)

# Larger than the last-level caches of ordinary machines.
_BUFFER = 1 << 30


@click.command("doctor")
@click.option("--measure", "anew", is_flag=True, help="Measure the disk again.")
@json_option
def command(anew: bool, as_json: bool) -> None:
    """Describe this computer: memory, processor, disk, and where flashllm keeps things.

    Measures the memory's read rate, and the disk's if there is a model in the store to read: in
    blocks of several sizes, several at once, past the page cache (direct) and through it (pread).
    That takes some 10 s; what it finds is kept in the user's cache folder and shown the next time.
    """
    with Report(quiet=as_json) as report:
        facts = examine(report, anew)
    if as_json:
        click.echo(json.dumps(facts))
    else:
        click.echo("\n".join(f"{label:<17} {text}" for label, text in describe(facts)))


def examine(report: Report, anew: bool) -> dict[str, Any]:
    """Every fact, in bytes and bytes per second, as --json prints them."""
    from flashllm.kernels import jit

    memory, cpu, models = machine.memory(), machine.cpu(), store.list_models()
    curve = disk_curve(models, anew, report)
    return {
        "flashllm": version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "memory": dataclasses.asdict(memory),
        "cpu": dataclasses.asdict(cpu) | {"usable_cores": cpu.usable_cores},
        "features": [name for name in _FEATURES if name in jit.cpu_features()],
        "memory_read": memory_rates(cpu.usable_cores, report),
        "kernels": {
            "folder": str(jit.cache_directory()),
            "compiled": jit.kernels_are_compiled(),
        },
        "models": {
            "folder": str(store.models_dir()),
            "count": len(models),
            "bytes": sum(model.bytes for model in models),
            "free_disk": machine.free_disk(store.models_dir()),
        },
        "disk_read": curve and curve.to_json(),
    }


def memory_rates(cores: int, report: Report) -> dict[str, float]:
    """Read rate of main memory with one thread and with all, by number of threads."""
    from flashllm.kernels import bandwidth

    report.message("measuring the memory's read rate")
    size = min(_BUFFER, machine.memory().usable // 4)
    return {str(count): bandwidth.measure(count, size) * 1e9 for count in sorted({1, cores})}


def disk_curve(models: list[store.StoredModel], anew: bool, report: Report) -> DiskCurve | None:
    """The read curve of the store's disk: the one kept, or measured on the largest stored model."""
    kept_in = curve_file.curve_path(store.models_dir())
    if not anew and (kept := curve_file.load(kept_in)):
        return kept
    if not models:
        return None
    report.message("measuring the disk's read rate")
    largest = max(models, key=lambda model: model.bytes)
    try:
        curve = disk_rate.measure(largest.path, disk_rate.SECONDS, report.progress)
        curve_file.save(curve, kept_in)
    except FlashError as error:
        report.message(f"cannot measure the disk's read rate: {error}.")
        return None
    except OSError as error:
        report.message(f"{kept_in}: cannot keep the disk's read rate: {error.strerror}.")
    return curve


def describe(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, text) of each fact, for human eyes."""
    memory, cpu, models, kernels = (facts[key] for key in ("memory", "cpu", "models", "kernels"))
    limit = memory["cgroup_limit"]
    limited = f", limited to {format_size(limit)} by a control group" if limit else ""
    rows = [
        ("flashllm", f"{facts['flashllm']}, Python {facts['python']}, {facts['system']}"),
        (
            "memory",
            f"{format_size(memory['total'])}, {format_size(memory['available'])} free{limited}",
        ),
        (
            "processor",
            f"{cpu['name']}; {cpu['physical_cores']} cores ({cpu['logical_cores']} logical), "
            f"{cpu['usable_cores']} to compute with",
        ),
        ("instructions", " ".join(facts["features"]) or "nothing special: portable kernels"),
    ]
    for threads, rate in facts["memory_read"].items():
        rows.append(("memory read", f"{rate / 1e9:.1f} GB/s with {threads} thread(s)"))
    if facts["disk_read"]:
        rows += describe_disk(DiskCurve.from_json(facts["disk_read"]))
    else:
        why = "" if models["count"] else ": there is no model to read"
        rows.append(("disk read", f"not measured{why}"))
    ready = "compiled" if kernels["compiled"] else "not compiled yet: the first run takes longer"
    rows.append(("kernels", f"{ready}, in {kernels['folder']}"))
    rows.append(
        (
            "models",
            f"{models['count']} ({format_size(models['bytes'])}) in {models['folder']}, "
            f"{format_size(models['free_disk'])} free",
        )
    )
    return rows


def describe_disk(curve: DiskCurve) -> list[tuple[str, str]]:
    """(label, text) of the disk's curve: when it was measured, then a table for each mode."""
    age = curve.age(datetime.datetime.now(datetime.UTC))
    lines = [f"measured {age}; doctor --measure does it again"]
    lines += [line for io in curve.modes for line in curve.table(io)]
    return [("" if i else "disk read", line) for i, line in enumerate(lines)]
