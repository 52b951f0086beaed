"""Tests of choosing tokens: exact where greedy, by the definitions where not, seeded throughout."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flashllm.errors import EngineError, InvalidInput
from flashllm.generate.sampling import Sampler, SamplingParams

GREEDY = SamplingParams(temperature=0)
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def draws(logits: np.ndarray, count: int = 4000, **options: Any) -> Counter[int]:
    """How often each token is drawn, each time as the first."""
    sampler = Sampler(SamplingParams(**{**PLAIN, "seed": 7, **options}))
    return Counter(sampler.sample(logits) for _ in range(count))


def logits_of(*probabilities: float) -> np.ndarray:
    return np.log(np.array(probabilities, dtype=np.float32))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=50))
def test_greedy_takes_the_first_of_the_largest(values: list[int]) -> None:
    logits = np.array(values, dtype=np.float32)
    assert Sampler(GREEDY).sample(logits) == values.index(max(values))


def test_temperature_one_draws_by_the_models_probabilities() -> None:
    counts = draws(logits_of(0.5, 0.3, 0.2))
    # five standard deviations of a binomial of 4000 are below 0.04
    assert counts[0] / 4000 == pytest.approx(0.5, abs=0.04)
    assert counts[2] / 4000 == pytest.approx(0.2, abs=0.04)


def test_a_high_temperature_flattens_and_a_low_one_sharpens() -> None:
    logits = logits_of(0.6, 0.4)
    assert draws(logits, temperature=50.0)[1] / 4000 == pytest.approx(0.5, abs=0.04)
    assert draws(logits, temperature=0.01)[1] == 0


def test_top_k_keeps_k_and_ties_go_to_low_ids() -> None:
    assert set(draws(logits_of(0.1, 0.3, 0.2, 0.4), top_k=2)) == {1, 3}
    assert set(draws(np.zeros(9, dtype=np.float32), top_k=3)) == {0, 1, 2}
    assert draws(logits_of(0.1, 0.9), top_k=1, temperature=100.0)[1] == 4000


def test_top_p_keeps_the_fewest_that_make_up_p() -> None:
    logits = logits_of(0.05, 0.5, 0.3, 0.15)
    assert set(draws(logits, top_p=0.5)) == {1}
    assert set(draws(logits, top_p=0.51)) == {1, 2}
    assert set(draws(logits, top_p=0.81)) == {1, 2, 3}
    assert set(draws(logits, top_p=0.0)) == {1}


def test_min_p_keeps_what_is_near_the_best() -> None:
    assert set(draws(logits_of(0.5, 0.3, 0.04, 0.16), min_p=0.3)) == {0, 1, 3}
    assert set(draws(logits_of(0.4, 0.3, 0.3), min_p=1.0)) == {0}


@settings(max_examples=300)
@example([0.0, 3.893251972674052e-22], 0.25, 0)
@given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=80),
    st.floats(0.01, 0.999),
    st.integers(0, 20),
)
def test_what_is_drawn_lies_in_the_set_of_the_definition(
    values: list[float], top_p: float, top_k: int
) -> None:
    logits = np.array(values, dtype=np.float32)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[: top_k or None]
    weights = np.exp(logits[order].astype(np.float64) - max(values))
    reached = np.cumsum(weights) / weights.sum()
    size = int((reached < top_p + 1e-5).sum()) + 1  # float32 sums may stop one later
    sampler = Sampler(SamplingParams(seed=1, top_k=top_k, top_p=top_p, min_p=0.0))
    assert {sampler.sample(logits) for _ in range(30)} <= set(order[:size])


def test_the_repeat_penalty_is_llama_cpps() -> None:
    logits = np.array([2.0, 1.5, -1.0, -1.4], dtype=np.float32)
    params = SamplingParams(temperature=0, repeat_penalty=1.5)
    assert Sampler(params).sample(logits) == 0
    assert Sampler(params, [0]).sample(logits) == 1  # 2.0 / 1.5 < 1.5
    low = np.array([-1.0, -1.4], dtype=np.float32)
    assert Sampler(params, [0]).sample(low) == 1  # -1.0 * 1.5 < -1.4
    assert logits[0] == 2.0, "the caller's logits are left alone"


def test_the_penalty_looks_back_on_256_tokens_and_on_its_own() -> None:
    logits = np.array([2.0, 1.5, 1.0], dtype=np.float32)
    params = SamplingParams(temperature=0, repeat_penalty=1.9)
    assert Sampler(params, [0] + [2] * 255).sample(logits) == 1
    assert Sampler(params, [0] + [2] * 256).sample(logits) == 0
    sampler = Sampler(params)
    assert [sampler.sample(logits) for _ in range(2)] == [0, 1]


def test_a_seed_reproduces_and_none_draws_one() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def run(seed: int | None) -> tuple[int, list[int]]:
        sampler = Sampler(SamplingParams(seed=seed))
        return sampler.seed, [sampler.sample(logits) for _ in range(50)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    seed, tokens = run(None)
    assert run(seed)[1] == tokens


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_numbers_are_an_error_that_says_what_to_do(
    bad: float, temperature: float
) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[4] = bad
    with pytest.raises(EngineError, match="flashllm verify"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)


def test_tokens_ruled_out_by_minus_infinity_are_never_drawn() -> None:
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[3, 5]] = 0
    assert set(draws(logits)) == {3, 5}
    with pytest.raises(EngineError):
        Sampler(GREEDY).sample(np.full(4, -np.inf, dtype=np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"},
        {"top_k": -1}, {"top_k": 1.5}, {"top_p": 1.1}, {"min_p": -0.1}, {"repeat_penalty": 0},
        {"seed": -1}, {"seed": True}, {"max_tokens": 0}, {"max_tokens": 2.0}, {"stop": ("",)},
        {"stop": "x" * 2000}, {"stop": ("x",) * 100}, {"stop": (1,)}, {"stop": 5},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        SamplingParams(**options)


def test_options_replace_settings_and_unknown_ones_are_refused() -> None:
    params = SamplingParams(seed=1).with_options({"top_k": 3, "stop": "x"})
    assert (params.seed, params.top_k, params.stop) == (1, 3, ("x",))
    with pytest.raises(InvalidInput, match="top_q"):
        params.with_options({"top_q": 1})  # type: ignore[typeddict-unknown-key]
