"""Predictors: thresholds, figures, and fits of planted layers."""

from __future__ import annotations

import numpy as np
import pytest
from convert_planted import linear_layer

from flashllm.convert.predictor import Predictor, quality, threshold
from flashllm.convert.predictor_fit import fit
from flashllm.errors import Cancelled
from flashllm.flash.quantize import dequantize, quantize


def ignore(share: float) -> None:
    """Hear nothing."""


def test_a_predictor_scores_by_its_definition() -> None:
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal(shape).astype(np.float32) for shape in ((32, 64), (96, 32), (96,))]
    x = rng.standard_normal((300, 64)).astype(np.float32)
    predictor = Predictor(*parts)
    down, up, bias = (part.astype(np.float64) for part in parts)
    expected = np.stack([up @ (down @ row) + bias for row in x.astype(np.float64)])
    np.testing.assert_allclose(predictor.scores(x), expected, rtol=1e-4, atol=1e-3)
    clear = np.abs(expected) > 1e-3
    assert np.array_equal(predictor.fires(x)[clear], (expected > 0)[clear])
    order = rng.permutation(96)
    moved = predictor.reordered(order)
    assert np.array_equal(moved.fires(x), predictor.fires(x)[:, order])


def test_figures_against_a_count_by_hand() -> None:
    fired = np.array([[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], bool)
    predicted = np.array([[1, 0, 1, 0, 0], [1, 0, 0, 1, 0]], bool)
    found = quality(predicted, fired)
    assert found.recall == pytest.approx(2 / 3)
    assert found.false_positives == pytest.approx(2 / 7)
    assert found.active == pytest.approx(3 / 10)
    assert found.predicted == pytest.approx(4 / 10)
    nothing = np.zeros_like(fired)
    assert quality(nothing, nothing).recall == 1.0
    assert quality(~nothing, ~nothing).false_positives == 0.0


@pytest.mark.parametrize("recall", [0.3, 0.9, 0.97, 1.0])
def test_a_threshold_is_the_highest_that_reaches_the_recall(recall: float) -> None:
    rng = np.random.default_rng(2)
    scores = rng.standard_normal((50, 40)).astype(np.float32)
    fired = rng.random((50, 40)) < 0.1
    limit = threshold(scores, fired, recall)
    firing = scores[fired]
    assert (firing > limit).mean() >= recall
    higher = limit + 1e-4  # beyond rounding
    assert (firing > higher).mean() < recall or firing[firing > limit].min() > higher


def test_where_nothing_fires_nothing_is_predicted() -> None:
    scores = np.array([[0.5, -3.0, 7.0]], np.float32)
    assert not (scores > threshold(scores, np.zeros((1, 3), bool), 0.97)).any()


@pytest.mark.parametrize("recall", [0.9, 0.97])
def test_a_fit_of_full_rank_finds_what_fires(recall: float) -> None:
    sample = linear_layer()
    predictor, figures = fit(sample, 64, recall, ignore)
    assert figures.recall >= recall
    assert figures.false_positives < 0.01
    assert figures.active == pytest.approx(0.1, abs=0.03)
    # The figures are those of the predictor, as it is stored.
    x, fired = sample.activity.inputs(sample.held), sample.activity.firing(sample.held)
    assert quality(predictor.fires(x), fired) == figures
    for part in (predictor.down, predictor.up):
        assert np.array_equal(dequantize(quantize(part, "q8")), part)


def test_inputs_of_low_rank_need_no_more() -> None:
    sample = linear_layer(inner=24)
    _, figures = fit(sample, 32, 0.97, ignore)
    assert figures.false_positives < 0.02


def test_a_layer_that_never_fires_or_always_does() -> None:
    for active in (0.0, 1.0):
        sample = linear_layer(tokens=300, neurons=64, active=active)
        sample.activity.fired[:] = 255 * int(active)
        predictor, figures = fit(sample, 32, 0.97, ignore)
        assert figures.recall >= 0.97
        assert np.isfinite(predictor.bias).all()


def test_a_fit_can_be_stopped() -> None:
    def stop(share: float) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        fit(linear_layer(tokens=300), 32, 0.97, stop)
