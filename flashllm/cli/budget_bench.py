"""A model measured within several budgets of memory, beside what disk and cores allow."""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashllm import machine
from flashllm.cache.read_cost import read_gap
from flashllm.cli.report import Report
from flashllm.cli.timing import memory_rate, tell_progress
from flashllm.cli.trial import PeakMemory, Trial, prompt_tokens, run_trial
from flashllm.errors import OutOfBudget
from flashllm.model.memory import STEP_TOKENS, weights_room
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.model.decoder import Decoder
    from flashllm.model.options import LoadOptions
    from flashllm.model.plan import Plan

DISK_SECONDS = 1.0
"""How long to measure the disk, before a run and again after it."""

_UNLIMITED = 1 << 60
_SPARE = 0.8  # the share of free memory that a run without a limit may take


@dataclasses.dataclass(frozen=True)
class Case:
    """A budget as it was asked for, in bytes (None: no limit), and the plan for it."""

    label: str
    budget: int | None
    plan: Plan


@dataclasses.dataclass(frozen=True)
class BudgetRun:
    """What a model did within a budget.

    trial: of the repetitions, the one of median speed. In bytes: resident, memory for weights;
    streamed, read for every pass over the model; peak_private, what was held at once. disk_rates:
    bytes per second of the same reads before and after, none if nothing streams. memory_rate: bytes
    per second that memory is read with. in_memory_tok_s: the best speed of a run that streams
    nothing, None if there was none. same_tokens: whether it wrote what the first budget's run did.
    """

    case: Case
    io: str
    load_s: float
    resident_bytes: int
    streamed_bytes: int
    peak_private: int
    trial: Trial
    disk_rates: list[float]
    memory_rate: float
    in_memory_tok_s: float | None
    same_tokens: bool

    @property
    def label(self) -> str:
        """The budget as it was asked for."""
        return self.case.label

    @property
    def tok_s(self) -> float:
        """Tokens written per second."""
        return self.trial.steady_tok_s

    @property
    def disk_rate(self) -> float | None:
        """Bytes per second of the same reads."""
        return sum(self.disk_rates) / len(self.disk_rates) if self.disk_rates else None

    @property
    def compute_bound(self) -> float:
        """Tokens per second if nothing had to be read."""
        if self.in_memory_tok_s is not None:
            return self.in_memory_tok_s
        return self.memory_rate / self.case.plan.used_bytes

    @property
    def read_bytes(self) -> float:
        """Bytes of weights read for a token: what streams, or of sparse models what was read."""
        return self.trial.read_bytes if self.case.plan.sparse else self.streamed_bytes

    @property
    def bound_tok_s(self) -> float:
        """Tokens per second if the slower of disk and cores were never idle."""
        disk, read = self.disk_rate, self.read_bytes
        return min(self.compute_bound, disk / read) if disk and read else self.compute_bound

    @property
    def planned_tok_s(self) -> float:
        """Tokens per second that the plan expects of this disk and this memory."""
        return self.case.plan.tok_s_at(self.disk_rate or float("inf"), self.memory_rate)

    @property
    def read_per_chunk(self) -> float:
        """Bytes of weights read for each step of the prompt, of up to STEP_TOKENS tokens."""
        return self.trial.prompt.traffic.read_bytes / -(-self.trial.n_prompt // STEP_TOKENS)


@dataclasses.dataclass(frozen=True)
class Series:
    """The runs of a model, in the order asked for, on so many threads."""

    threads: int
    kv_dtype: str
    runs: list[BudgetRun]

    @property
    def same_tokens(self) -> bool:
        """Whether all wrote the same."""
        return all(run.same_tokens for run in self.runs)


def measure(
    path: Path, budgets: list[str], options: LoadOptions, shape: dict[str, Any], report: Report
) -> Series:
    """Run the model in `path` within each budget, one after another.

    Without a limit too, first, if that is not asked for and there is memory for it: it shows what
    computing alone takes. shape: n_prompt, n_gen, repetitions. Raises OutOfBudget before anything
    is measured if one is too small, and what loading and running raise.
    """
    cases = [case_of(path, text, options) for text in budgets]
    unlimited = case_of(path, "inf", options)
    free = _SPARE * machine.memory().usable
    if all(case.budget is not None for case in cases) and unlimited.plan.total_bytes < free:
        cases.insert(0, unlimited)
    for case in cases:
        if not case.plan.fits:
            raise OutOfBudget(f"{case.label}: {case.plan.verdict}")
    report.message("measuring the memory's read rate")
    limits = [case.budget for case in cases if case.budget is not None]
    # A buffer that fits the least of them would be read from the processor's cache.
    rate = memory_rate(options.threads or 1, max(limits, default=None))
    runs: list[BudgetRun] = []
    for number, case in enumerate(cases, 1):
        limit = "no limit" if case.budget is None else format_size(case.budget)
        report.message(f"measuring {case.label} ({limit}), {number} of {len(cases)}")
        run = run_within(path, case, options, shape, report)
        same = not runs or run.trial.tokens == runs[0].trial.tokens
        runs.append(dataclasses.replace(run, memory_rate=rate, same_tokens=same))
    alone = max((run.tok_s for run in runs if not run.read_bytes), default=None)
    runs = [dataclasses.replace(run, in_memory_tok_s=alone) for run in runs]
    return Series(options.threads or 1, cases[0].plan.kv_dtype, runs)


def case_of(path: Path, text: str, options: LoadOptions) -> Case:
    """The budget that `text` asks for. Raises InvalidInput."""
    from flashllm.convert.planning import plan_model

    def plan(budget: int | str) -> Plan:
        return plan_model(path, dataclasses.replace(options, mem_budget=budget))

    if text == "inf":
        return Case(text, None, plan(_UNLIMITED))
    found = plan(plan(_UNLIMITED).smallest_budget if text == "floor" else text)
    return Case(text, found.budget, found)


def run_within(
    path: Path, case: Case, options: LoadOptions, shape: dict[str, Any], report: Report
) -> BudgetRun:
    """Load the model within a budget, read a prompt, write; the disk measured before and after."""
    from flashllm.model.loader import load_decoder

    asked = dataclasses.replace(options, mem_budget=case.budget)
    rates = [disk_rate(path, case, options.io)]
    with PeakMemory() as peak:
        report.stage("loading")
        start = time.perf_counter()
        decoder = load_decoder(path, asked, on_progress=report.bytes)
        try:
            load_s = time.perf_counter() - start
            report.stage(case.label)
            trials = run_trials(decoder, shape, report)
        finally:
            decoder.close()
    if decoder.fallback:
        report.message(decoder.fallback)
    rates.append(disk_rate(path, case, options.io))
    return BudgetRun(
        case=case,
        io=decoder.io,
        load_s=load_s,
        resident_bytes=decoder.resident_bytes,
        streamed_bytes=decoder.streamed_bytes,
        peak_private=peak.bytes,
        trial=sorted(trials, key=lambda trial: trial.steady_tok_s)[len(trials) // 2],
        disk_rates=[rate for rate in rates if rate is not None],
        memory_rate=0.0,
        in_memory_tok_s=None,
        same_tokens=True,
    )


def run_trials(decoder: Decoder, shape: dict[str, Any], report: Report) -> list[Trial]:
    """As many trials as asked for."""
    prompt = prompt_tokens(shape["n_prompt"], decoder.config.vocab_size)
    if not decoder.streamed_bytes:
        run_trial(decoder, prompt[:8], 1)  # touches every weight for the first time
    repetitions = shape["repetitions"]
    return [
        run_trial(
            decoder,
            prompt,
            shape["n_gen"],
            functools.partial(tell_progress, report, done, repetitions),
        )
        for done in range(repetitions)
    ]


def disk_rate(path: Path, case: Case, io: str) -> float | None:
    """Bytes per second of the reads that a run within this budget makes; None if it makes none.

    Measured while no model is loaded, since its buffers are memory that no budget has room for.
    """
    from flashllm import api
    from flashllm.cli import scattered_reads, streamed_reads

    if case.budget is None:
        return None
    io = "direct" if io == "auto" else io  # what streams never comes from the page cache
    sparse = case.plan.sparse
    if sparse and sparse.window_bytes:
        if not sparse.new_bytes:
            return None
        share = sparse.new_bytes / sparse.ffn_bytes
        speed = api.stored_speed(path)
        gap = read_gap(speed.disk if speed else None)
        return scattered_reads.measure(path, share, gap, io, DISK_SECONDS)
    room = weights_room(case.budget, case.plan.kv_bytes, case.plan.scratch_bytes)
    return streamed_reads.measure(path, room, io, DISK_SECONDS)
