"""What budgets of memory came to: a table for human eyes, and every figure for --json."""

from __future__ import annotations

import dataclasses
from typing import Any

from flashllm.cli.budget_bench import BudgetRun, Series
from flashllm.cli.figures import how_sparse, percent, speed
from flashllm.cli.timing import run_facts
from flashllm.sizes import format_size

_SPEED = (
    *("budget", "limit", "held", "prefill", "decode", "bound", "of it", "read/tok", "hit"),
    *("waits", "computes"),
)
_NEURONS = ("budget", "active", "new/tok", "manages", "window", "of tokens")
_CHECKS = (
    *("budget", "disk GB/s", "planned read", "off by", "planned tok/s", "off by"),
    *("read/chunk", "of streamed", "written", "tokens"),
)


def facts(series: Series) -> dict[str, Any]:
    """All that was measured. In bytes, seconds and tokens per second."""
    return {
        "threads": series.threads,
        "kv_dtype": series.kv_dtype,
        "same_tokens": series.same_tokens,
        "budgets": [_facts(run) for run in series.runs],
    }


def _facts(run: BudgetRun) -> dict[str, Any]:
    return {
        "budget": run.label,
        "mem_budget": run.case.budget,
        "io": run.io,
        "load_s": run.load_s,
        "prefill_tok_s": run.trial.prefill_tok_s,
        "decode_tok_s": run.tok_s,
        "bound_tok_s": run.bound_tok_s,
        "bound_share": run.tok_s / run.bound_tok_s,
        "compute_bound_tok_s": run.compute_bound,
        "disk_rate": run.disk_rate,
        "disk_rates": run.disk_rates,
        "memory_rate": run.memory_rate,
        "resident_bytes": run.resident_bytes,
        "streamed_bytes": run.streamed_bytes,
        "read_per_chunk": run.read_per_chunk,
        "peak_private": run.peak_private,
        "same_tokens": run.same_tokens,
        "tokens": run.trial.tokens,
        **run_facts(run.trial),
        "plan": dataclasses.asdict(run.case.plan) | {"tok_s_then": run.planned_tok_s},
    }


def describe(name: str, series: Series, shape: dict[str, Any]) -> list[str]:
    """Two tables with a line for each budget: how fast it ran, and what that is held against.

    Speeds are in tokens per second; waits and computes are of a token.
    """
    return [
        f"{name}: prompt {shape['n_prompt']}, reply {shape['n_gen']}, {series.threads} thread(s), "
        f"keys and values in {series.kv_dtype}",
        *([how_sparse(shape["sparse"])] if shape.get("sparse") else []),
        *_columns([_SPEED, *map(_speed_row, series.runs)]),
        *_sparse_columns(series.runs),
        "",
        *_columns([_CHECKS, *map(_checks_row, series.runs)]),
        "",
        f"same tokens: {'yes' if series.same_tokens else 'NO'}",
    ]


def _sparse_columns(runs: list[BudgetRun]) -> list[str]:
    """A table of what sparse runs computed and read of neurons for a token; nothing of others."""
    rows = [_sparse_row(run) for run in runs if run.trial.active_share is not None]
    return ["", *_columns([_NEURONS, *rows])] if rows else []


def _sparse_row(run: BudgetRun) -> tuple[str, ...]:
    plan, trial = run.case.plan.sparse, run.trial
    room, tokens = (plan.window_bytes, plan.window_tokens) if plan else (0, None)
    return (
        run.label,
        percent(trial.active_share or 0.0),
        format_size(trial.new_bytes),
        f"{1e3 * trial.manage_s:.2f} ms",
        format_size(room) if room else "all",
        "" if tokens is None else str(tokens),
    )


def _speed_row(run: BudgetRun) -> tuple[str, ...]:
    limit, trial = run.case.budget, run.trial
    return (
        run.label,
        "none" if limit is None else format_size(limit),
        format_size(run.peak_private) + (" !" if limit and run.peak_private > limit else ""),
        speed(trial.prefill_tok_s),
        speed(run.tok_s),
        speed(run.bound_tok_s),
        f"{100 * run.tok_s / run.bound_tok_s:.0f}%",
        format_size(trial.read_bytes),
        percent(trial.hit_rate),
        f"{1e3 * trial.wait_s:.0f} ms",
        f"{1e3 * trial.compute_s:.0f} ms",
    )


def _checks_row(run: BudgetRun) -> tuple[str, ...]:
    plan, trial, streamed = run.case.plan, run.trial, run.streamed_bytes
    disk = ", ".join(f"{rate / 1e9:.2f}" for rate in run.disk_rates)
    return (
        run.label,
        disk,
        format_size(plan.streamed_bytes),
        _apart(trial.read_bytes, plan.streamed_bytes),
        speed(run.planned_tok_s),
        _apart(run.tok_s, run.planned_tok_s),
        format_size(run.read_per_chunk),
        f"{run.read_per_chunk / streamed:.2f}x" if streamed else "",
        "?" if trial.written_bytes is None else format_size(trial.written_bytes),
        "same" if run.same_tokens else "DIFFER",
    )


def _apart(measured: float, planned: float) -> str:
    """How far what was measured is from what was planned."""
    if not planned:
        return "" if not measured else "not planned"
    return f"{100 * (measured / planned - 1):+.1f}%"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines, each column as wide as it must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
