"""Open the model that the flags name, fetching it first if need be, and say what takes time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flashllm import api, machine
from flashllm.cli.options import EngineOptions
from flashllm.cli.report import Report
from flashllm.flash.format import read_model
from flashllm.flash.reader import UnitReader
from flashllm.kernels import jit
from flashllm.llm import LLM, Session


def open_llm(path: Path, options: EngineOptions, report: Report) -> LLM:
    """The model in the folder `path`, in memory. Raises what loading raises."""
    say_if_compiling(options.backend, report)
    say_if_io_falls_back(path, options.io, report)
    report.stage("loading")
    return LLM.open(
        path,
        mem_budget=memory_limit(options),
        threads=options.threads,
        backend=options.backend,
        n_ctx=options.ctx_size,
        kv_dtype=options.kv_dtype,
        io=options.io,
        on_progress=report.bytes,
    )


def locate(model: str, offline: bool, report: Report) -> Path:
    """The folder of `model`, in the flash format: fetched or converted first, if need be."""
    return api.pull(model, offline=offline, on_progress=report.bytes, on_message=report.message)


def memory_limit(options: EngineOptions) -> int | str:
    """What --mem says; "auto" is what this process holds already and what is free besides."""
    return options.mem or machine.memory().usable + machine.rss()


def say_if_compiling(backend: str, report: Report) -> None:
    """The first run ever compiles the kernels, which takes long enough to look like a hang."""
    if backend == "cpu" and not jit.kernels_are_compiled():
        report.message("compiling kernels for this machine (once, 5 to 30 s)")


def say_if_io_falls_back(path: Path, io: str, report: Report) -> None:
    """Say so if the model's files cannot be read in the mode asked for; one byte of each tells."""
    if io == "auto":
        return
    model = read_model(path)
    files = sorted({group.file for group in model.groups.values()})
    with UnitReader(model, io, threads=1) as reader:
        reader.read([(file, 0, 1) for file in files], [np.empty(1, np.uint8) for _ in files])
        if reader.fallback:
            report.message(reader.fallback)


def open_session(llm: LLM, file: Path | None, system: str | None) -> Session:
    """A new session, or the one in `file` if it exists; `system` replaces its system prompt."""
    if file is None or not file.exists():
        return llm.session(system=system)
    session = llm.load_session(file)
    if system is not None:
        session.system = system
    return session
