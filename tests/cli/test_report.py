"""Tests of cli/report.py: plain lines without a terminal, nothing when quiet, bars otherwise."""

from __future__ import annotations

import pytest

from flashllm.cli import report as report_module
from flashllm.cli.report import Report


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(report_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Report(terminal=False) as report:
        report.message("fetching a model")
        report.progress(1, 100)
        clock[0] += 11
        report.progress(30, 100)
        report.progress(31, 100)
        clock[0] += 11
        report.progress(60, 100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "fetching a model ...\nfetching: 30 %\nfetching: 60 %\n"


def test_sizes_and_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Report(terminal=False) as report:
        report.message("fetching 3 GB.")
        report.bytes(1_000_000_000, 3_000_000_000)  # came before
        clock[0] += 20
        report.bytes(1_500_000_000, 3_000_000_000)
        clock[0] += 20
        report.bytes(1_500_000_001, 3_000_000_000)
        clock[0] += 20
        report.bytes(2_990_000_000, 3_000_000_000)
        report.stage("converting")
        clock[0] += 20
        report.bytes(1, 3_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "fetching 3 GB.",
        "fetching: 50 % of 3 GB, 60 s left",
        "fetching: 50 % of 3 GB, 2 min left",
        "fetching: 99 % of 3 GB, 0 s left",
        "converting: 0 % of 3 GB",
    ]


def test_quiet_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for terminal in (True, False):
        with Report(quiet=True, terminal=terminal) as report:
            report.message("fetching")
            clock[0] += 100
            report.progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_only_for_what_takes_a_while(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Report(terminal=True) as report:
        report.stage("loading")
        report.progress(1, 2)
        assert capsys.readouterr().err == ""
        clock[0] += 1
        report.progress(1, 2)
        report.progress(2, 2)
        report.clear()
        assert "loading" in capsys.readouterr().err


def test_nothing_to_count_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with Report(terminal=False) as report:
        report.progress(0, 0)
    assert capsys.readouterr().err == ""
