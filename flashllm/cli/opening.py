"""Open the model that the flags name, fetching it first if need be, and say what takes time."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from flashllm import api
from flashllm.cli.figures import how_sparse
from flashllm.cli.options import EngineOptions
from flashllm.cli.report import Report
from flashllm.kernels import jit
from flashllm.llm import LLM, Session


def open_llm(path: Path, options: EngineOptions, report: Report) -> LLM:
    """The model in the folder `path`, in memory. Raises what loading raises."""
    load = options.load
    if load.draft is not None:
        draft = locate(str(load.draft), options.offline, report)
        load = dataclasses.replace(load, draft=draft)
    say_if_compiling(load.backend, report)
    report.stage("loading")
    llm = LLM.open(path, on_progress=report.bytes, on_message=report.message, **load.arguments())
    if llm.io_fallback:
        report.message(llm.io_fallback)
    if llm.sparse:
        report.message(f"{how_sparse(llm.sparse)}.")
    return llm


def locate(model: str, offline: bool, report: Report) -> Path:
    """The folder of `model`, in the flash format: fetched or converted first, if need be."""
    return api.pull(model, offline=offline, on_progress=report.bytes, on_message=report.message)


def say_if_compiling(backend: str, report: Report) -> None:
    """The first run ever compiles the kernels, which takes long enough to look like a hang."""
    if backend == "cpu" and not jit.kernels_are_compiled():
        report.message("compiling kernels for this machine (once, 5 to 30 s)")


def open_session(llm: LLM, file: Path | None, system: str | None) -> Session:
    """A new session, or the one in `file` if it exists; `system` replaces its system prompt."""
    if file is None or not file.exists():
        return llm.session(system=system)
    session = llm.load_session(file)
    if system is not None:
        session.system = system
    return session
