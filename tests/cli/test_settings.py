"""Tests of cli/settings.py: what was given beats what is recommended, and changes are checked."""

from __future__ import annotations

import pytest

from flashllm.cli.options import SamplingOptions
from flashllm.cli.settings import Settings
from flashllm.errors import InvalidInput


def options(**given: float) -> SamplingOptions:
    values = {"n_predict": -1, "seed": None, "temperature": None, "top_k": None, "top_p": None}
    values |= {"min_p": None, "repeat_penalty": None}
    return SamplingOptions(**(values | given))  # type: ignore[arg-type]


def test_flags_beat_the_manifest() -> None:
    settings = Settings(options(temperature=0.0, n_predict=5), {"temperature": 0.2, "top_p": 0.9})
    assert settings.sampling() == {"temperature": 0.0, "top_p": 0.9, "max_tokens": 5}


def test_unset_settings_are_left_to_the_library() -> None:
    assert Settings(options(), {}).sampling() == {}


def test_a_second_attempt_draws_from_another_seed() -> None:
    settings = Settings(options(seed=7), {})
    assert [settings.sampling(attempt)["seed"] for attempt in range(3)] == [7, 8, 9]
    assert "seed" not in Settings(options(), {}).sampling(attempt=1)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("temp 0.7", "temperature", 0.7),
        ("temperature=0", "temperature", 0.0),
        ("--top-k 40", "top_k", 40),
        ("top_p 1", "top_p", 1.0),
        ("seed 3", "seed", 3),
        ("n 12", "max_tokens", 12),
    ],
)
def test_settings_change(text: str, key: str, value: float) -> None:
    settings = Settings(options(), {})
    settings.change(text)
    assert settings.sampling() == {key: value}
    assert f"{value:g}" in settings.describe()


def test_minus_one_goes_back_to_the_default() -> None:
    settings = Settings(options(seed=3, n_predict=5), {})
    settings.change("seed -1")
    settings.change("n -1")
    assert settings.sampling() == {}


@pytest.mark.parametrize("text", ["wit 3", "temp", "temp hot", "temp -1", "top-k 0.5", "temp nan"])
def test_nonsense_is_refused(text: str) -> None:
    settings = Settings(options(), {})
    with pytest.raises(InvalidInput):
        settings.change(text)
    assert settings.sampling() == {}
