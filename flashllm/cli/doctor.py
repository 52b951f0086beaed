"""flashllm doctor: this computer as flashllm sees it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
from typing import Any

import click

from flashllm import machine
from flashllm.cli import measuring
from flashllm.cli.main import version
from flashllm.cli.options import json_option
from flashllm.cli.report import Report
from flashllm.disk_curve import DiskCurve
from flashllm.hub import store
from flashllm.sizes import format_size

# Instruction sets that kernels choose between, by LLVM's names.
_FEATURES = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vnni", "avx512vbmi2"),
    *("neon", "dotprod", "i8mm", "sve"),
)


@click.command("doctor")
@click.option("--measure", "anew", is_flag=True, help="Measure memory and disk again.")
@json_option
def command(anew: bool, as_json: bool) -> None:
    """Describe this computer: memory, processor, disk, and where flashllm keeps things.

    Measures the read rates of memory, with one thread and with all, and of the disk: in blocks of
    several sizes, several at once, past the page cache (direct) and through it (pread). That takes
    some 10 s; what it finds is kept in the user's cache folder, for plans, and shown the next time.
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
    speed = measuring.read_speed(store.models_dir(), report, anew=anew)
    return {
        "flashllm": version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "memory": dataclasses.asdict(memory),
        "cpu": dataclasses.asdict(cpu) | {"usable_cores": cpu.usable_cores},
        "features": [name for name in _FEATURES if name in jit.cpu_features()],
        "memory_read": {str(rate.threads): rate.bytes_per_s for rate in speed.memory},
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
        "disk_read": speed.disk and speed.disk.to_json(),
    }


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
        rows.append(("disk read", "not measured"))
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
