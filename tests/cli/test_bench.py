"""Tests of bench --budgets: what is measured adds up, and is told in a table, a plot and JSON."""

from __future__ import annotations

import dataclasses
import json
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sparse_model
import streamed
import tiny
from hypothesis import given
from hypothesis import strategies as st

from flashllm.cache.units import Traffic
from flashllm.cli import budget_bench, budget_table, streamed_reads
from flashllm.cli.budget_bench import Series
from flashllm.cli.main import main
from flashllm.cli.plots import Bar, bars, png_writer
from flashllm.cli.report import Report
from flashllm.cli.trial import PeakMemory, Step, Trial
from flashllm.errors import CorruptModel, InvalidInput, ModelIOError
from flashllm.flash.format import read_model
from flashllm.kernels import bandwidth
from flashllm.model.options import LoadOptions

SHAPE = {"n_prompt": 20, "n_gen": 5, "repetitions": 1, "io": "auto"}
FLAGS = ["-p", "20", "-n", "5", "-t", "1"]
MEMORY_RATE = 10.0e9


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Small reads, and no time spent on measuring disk and memory."""
    with pytest.MonkeyPatch.context() as patch:
        streamed.small_reads(patch)
        patch.setattr(budget_bench, "DISK_SECONDS", 0.0)
        patch.setattr(bandwidth, "measure", lambda threads, size: MEMORY_RATE / 1e9)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    return tiny.model_dir(folder, layers=6, hidden=128, ffn=512, vocab=600, tied=False)


@pytest.fixture(scope="module")
def series(model: Path, quick: None) -> Series:
    options = LoadOptions(None, 25, 1)
    budgets = ["0.9x", "floor"]
    return budget_bench.measure(model, budgets, options, SHAPE, Report(quiet=True))


def test_a_run_without_limit_comes_first_and_all_write_the_same(series: Series) -> None:
    assert [run.label for run in series.runs] == ["inf", "0.9x", "floor"]
    assert series.same_tokens
    assert len({tuple(run.trial.tokens) for run in series.runs}) == 1
    assert len(series.runs[0].trial.tokens) == 6


def test_what_is_read_is_what_was_planned(series: Series) -> None:
    resident, _, floor = series.runs
    assert (resident.streamed_bytes, resident.trial.read_bytes) == (0, 0.0)
    assert resident.disk_rates == []
    plan = floor.case.plan
    assert floor.streamed_bytes > 0
    assert len(floor.disk_rates) == 2
    assert floor.resident_bytes == plan.resident_bytes
    assert floor.streamed_bytes <= floor.trial.read_bytes
    # Beside what streams only rows are looked up, which the plan knows on average.
    rows = plan.streamed_bytes - floor.streamed_bytes
    assert floor.trial.read_bytes <= floor.streamed_bytes + 2 * rows
    assert floor.streamed_bytes <= floor.read_per_chunk <= floor.streamed_bytes + 4 * rows


def test_the_bound_is_the_slower_of_disk_and_cores(series: Series) -> None:
    run = series.runs[-1]
    streams = run.streamed_bytes
    slow = dataclasses.replace(run, disk_rates=[streams, 3.0 * streams], in_memory_tok_s=50.0)
    assert slow.bound_tok_s == pytest.approx(2.0)
    fast = dataclasses.replace(run, disk_rates=[99.0 * streams], in_memory_tok_s=50.0)
    assert fast.bound_tok_s == 50.0
    unknown = dataclasses.replace(fast, in_memory_tok_s=None)
    used = run.case.plan.used_bytes
    assert unknown.bound_tok_s == pytest.approx(min(99.0, MEMORY_RATE / used))


def test_the_table_has_a_line_for_each_budget(series: Series) -> None:
    lines = budget_table.describe("tiny", series, SHAPE)
    for head in ("held", "written"):
        at = next(i for i, line in enumerate(lines) if head in line)
        assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["inf", "0.9x", "floor"]
        assert len({len(line) for line in lines[at : at + 4]}) == 1
    assert max(map(len, lines)) <= 110
    wavering = dataclasses.replace(series.runs[-1], disk_rates=[1.5e9, 2.25e9])
    told = budget_table.describe("tiny", dataclasses.replace(series, runs=[wavering]), SHAPE)
    assert any("1.50, 2.25" in line for line in told)
    assert lines[-1] == "same tokens: yes"
    odd = dataclasses.replace(series.runs[1], same_tokens=False, peak_private=1 << 40)
    told = budget_table.describe("tiny", dataclasses.replace(series, runs=[odd]), SHAPE)
    assert told[-1] == "same tokens: NO"
    assert "DIFFER" in told[-3]
    assert "1.1 TB !" in told[2]


def test_the_verb_prints_json_or_tables_and_bars(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["bench", "-m", str(model), "--budgets", "inf,floor", *FLAGS]
    assert main([*flags, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same_tokens"] is True
    assert [row["budget"] for row in told["budgets"]] == ["inf", "floor"]
    floor = told["budgets"][1]
    assert floor["bound_share"] == pytest.approx(floor["decode_tok_s"] / floor["bound_tok_s"])
    assert floor["plan"]["smallest_budget"] == floor["mem_budget"]
    assert 0 <= floor["hit_rate"] < 1
    assert len(floor["token_ms"]) == 5
    assert floor["written_bytes"] in (0, None)
    assert main(flags) == 0
    out = capsys.readouterr().out
    assert "same tokens: yes" in out
    assert "┃" in out


def test_the_picture_is_a_png_and_a_disk_that_takes_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    drawn = [Bar("inf", 20.0, 21.0), Bar("0.5x", 3.0, 3.2)]
    png_writer(tmp_path / "speed.png")("tiny, 2 thread(s)", drawn)
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ModelIOError, match=r"folder\.png"):
        png_writer(tmp_path / "folder.png")("tiny", drawn)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--budgets", "0.5x", "--mem", "1GB"], "--mem"),
        (["--budgets", "0.5x", "-t", "1,2"], "-t"),
        (["--budgets", "0.5x,much"], "much"),
        (["--plot", "x.png"], "--budgets"),
        (["--budgets", "0.5x", "--plot", "missing/x.png"], "missing/x.png"),
        (["--budgets", "0.5x", "--plot", "x.svg"], ".png"),
        (["--budgets", "inf,1MB", *FLAGS], "1MB: does not fit"),
    ],
)
def test_what_cannot_be_measured_is_said_first(
    flags: list[str], said: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if {"--plot", "--budgets"} <= {*flags}:
        pytest.importorskip("matplotlib")
    assert main(["bench", "-m", str(model), *flags]) in (2, 6)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err.splitlines()[-1]
    assert "measuring" not in captured.err


def test_the_extra_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InvalidInput, match=r"flashllm\[docs\]"):
        png_writer(tmp_path / "x.png")


speeds = st.floats(0.001, 1e4)


@given(
    st.lists(
        st.builds(Bar, st.text("0123456789.x", min_size=1, max_size=8), speeds, speeds),
        min_size=1,
        max_size=8,
    ),
    st.integers(30, 300),
)
def test_bars_fit_the_terminal_and_are_as_long_as_they_are_fast(
    drawn: list[Bar], width: int
) -> None:
    head, *lines = bars(drawn, width)
    assert len(lines) == len(drawn)
    assert max(map(len, [head, *lines])) <= width
    label = max(len(bar.label) for bar in drawn)
    bodies = [line[label + 1 :] for line in lines]
    assert all(body.count("┃") == 1 for body in bodies)
    lengths = [sum(cell in "█┃" for cell in body) for body in bodies]
    for one, length in zip(drawn, lengths, strict=True):
        for other, longer in zip(drawn, lengths, strict=True):
            if one.tok_s <= other.tok_s:
                assert length <= longer + 1  # the mark may hide a cell, or stand for one
    marks = [body.index("┃") for body in bodies]
    assert max(marks) == marks[max(range(len(drawn)), key=lambda i: drawn[i].bound)]


def test_reads_are_verified_and_none_are_made_where_nothing_streams(
    model: Path, series: Series, tmp_path: Path
) -> None:
    room = series.runs[-1].resident_bytes
    rate = streamed_reads.measure(model, room, "pread", 0.0)
    assert rate is not None
    assert rate > 0
    assert streamed_reads.measure(model, 1 << 40, "pread", 0.0) is None
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    group = read_model(model).groups["layers.3.ffn"]
    with (tmp_path / group.file).open("r+b") as file:
        file.seek(group.file_offset + int(group.offsets[-2]))
        file.write(b"damaged")
    with pytest.raises(CorruptModel, match="checksum"):
        streamed_reads.measure(tmp_path, room, "pread", 0.2)


def test_a_trial_leaves_its_first_tokens_out() -> None:
    def step(seconds: float, read: int, wait: float) -> Step:
        return Step(seconds, Traffic(100, read, wait))

    steps = [step(9.0, 100, 8.0), step(7.0, 100, 6.0), step(1.0, 20, 0.5), step(2.0, 40, 0.5)]
    steps.append(step(3.0, 60, 0.5))
    trial = Trial(8, step(4.0, 100, 1.0), steps, [1, 2, 3, 4, 5, 6], 0)
    assert trial.prefill_tok_s == 2.0
    assert trial.decode_tok_s == pytest.approx(5 / 22)
    assert trial.steady_tok_s == 0.5
    assert trial.read_bytes == 40.0
    assert trial.hit_rate == pytest.approx(0.6)
    assert (trial.wait_s, trial.compute_s) == (0.5, 1.5)
    short: Any = dataclasses.replace(trial, steps=steps[:2])
    assert short.steady == steps[:2]


def test_the_peak_of_memory_is_seen() -> None:
    with PeakMemory() as peak:
        pass
    before = peak.bytes
    assert before > 1 << 20
    with PeakMemory() as peak, mmap.mmap(-1, 64 << 20) as region:
        region.write(b"x" * (64 << 20))
        while peak.bytes < before + (48 << 20):
            pass


def test_budgets_of_a_sparse_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sparse_model.write(tmp_path)
    limit = str(sparse_model.budget(model, "predictor", 2.5))
    flags = ["bench", "-m", str(model), "-p", "20", "-n", "5", "-t", "1", "--sparse", "predictor"]
    assert main([*flags, "--budgets", f"inf,{limit}", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sparse"], told["window"], told["same_tokens"]) == ("predictor", None, True)
    whole, small = told["budgets"]
    assert whole["new_bytes"] == 0
    assert 0.3 < whole["active_share"] < 0.7
    assert small["active_share"] == whole["active_share"]
    # A layer is read twice at most, what is foreseen and then what that missed; each takes the
    # units between as well, which here are nearly all that remain.
    assert 0 < small["new_bytes"] <= 2 * sparse_model.LAYERS * sparse_model.LAYER_BYTES
    assert small["disk_rate"] > 0
    assert 0 < small["bound_tok_s"] <= whole["decode_tok_s"]
    assert main([*flags, "--budgets", limit, "--window", "0"]) == 0
    out = capsys.readouterr().out
    assert "sparse: predictor (lossy)" in out
    assert "new/tok" in out
    assert main([*flags, "-r", "1", "--mem", limit]) == 0
    out = capsys.readouterr().out
    assert "sparse: predictor (lossy)" in out
    assert "% active; a token reads" in out
