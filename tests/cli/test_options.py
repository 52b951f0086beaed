"""Tests of cli/options.py: flags arrive as objects, checked, with llama.cpp's names."""

from __future__ import annotations

from typing import get_args

import click
import pytest
from click.testing import CliRunner, Result

from flashllm.cli.options import (
    EngineOptions,
    SamplingOptions,
    engine_options,
    sampling_options,
    system_prompt_option,
)
from flashllm.errors import InvalidInput
from flashllm.flash.reader import IO_MODES
from flashllm.hub.manifests import DEFAULT_MODEL
from flashllm.model.options import IOMode, LoadOptions, Sparse

Seen = tuple[EngineOptions, SamplingOptions, str | None]


def invoke(*args: str) -> tuple[Result, list[Seen]]:
    seen: list[Seen] = []

    @click.command()
    @engine_options
    @sampling_options
    @system_prompt_option
    def command(engine: EngineOptions, sampling: SamplingOptions, system: str | None) -> None:
        seen.append((engine, sampling, system))

    return CliRunner().invoke(command, list(args)), seen


def test_defaults_leave_everything_to_the_model() -> None:
    _, [(engine, sampling, system)] = invoke()
    assert engine == EngineOptions(DEFAULT_MODEL, False, LoadOptions())
    assert sampling.given() == {}
    assert sampling.n_predict == -1
    assert system is None


def test_flags_of_llama_cpp() -> None:
    flags = "-m x --mem 6GB -c 100 -t 2 --backend reference --offline -n 5 -s 7 --temp 0 --top-k 3"
    flags += " --kv-dtype f32 --io mmap --top-p 0.5 --min-p 0.1 --repeat-penalty 1.1 -sys Hi"
    _, [(engine, sampling, system)] = invoke(*flags.split())
    assert engine == EngineOptions(
        "x", True, LoadOptions("6GB", 100, 2, "reference", "f32", "mmap")
    )
    assert sampling == SamplingOptions(5, 7, 0.0, 3, 0.5, 0.1, 1.1)
    assert system == "Hi"


def test_every_mode_of_the_reader_can_be_asked_for() -> None:
    for mode in IO_MODES:
        _, [(engine, _, _)] = invoke("--io", mode)
        assert engine.load.io == mode
    assert set(get_args(IOMode)) == set(IO_MODES)


def test_running_sparse() -> None:
    _, [(engine, _, _)] = invoke("--sparse", "gate", "--window", "3")
    assert (engine.load.sparse, engine.load.window) == ("gate", 3)
    result, _ = invoke("--window", "3")
    assert isinstance(result.exception, InvalidInput)
    for how in get_args(Sparse):
        _, [(engine, _, _)] = invoke("--sparse", how)
        assert engine.load.sparse == how


def test_memory_may_be_automatic() -> None:
    _, [(engine, _, _)] = invoke("--mem", "auto")
    assert engine.load.mem_budget == "auto"


@pytest.mark.parametrize(
    "args",
    [
        ["--mem", "6 apples"],
        ["-c", "0"],
        ["-t", "0"],
        ["--temp", "-0.1"],
        ["--top-p", "1.1"],
        ["--repeat-penalty", "0"],
        ["-n", "-2"],
        ["--backend", "gpu"],
        ["--kv-dtype", "q4"],
        ["--io", "uring"],
        ["--sparse", "yes"],
        ["--sparse", "gate", "--window", "-1"],
    ],
)
def test_values_out_of_range_are_refused(args: list[str]) -> None:
    result, seen = invoke(*args)
    assert result.exit_code == 2
    assert seen == []
