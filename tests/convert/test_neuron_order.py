"""The order of neurons, and what a window of tokens saves, against slow twins and plants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from convert_planted import clusters

from flashllm.convert.neuron_order import coactivation_order, reads
from flashllm.convert.neuron_window import window_curve
from flashllm.flash.sparsity import MAX_WINDOW


def test_an_order_names_every_neuron_once() -> None:
    rng = np.random.default_rng(0)
    for neurons in (1, 2, 3, 50, 700):
        fired = rng.random((60, neurons)) < 0.2
        assert sorted(coactivation_order(fired)) == list(range(neurons))
    assert sorted(coactivation_order(np.zeros((9, 40), bool))) == list(range(40))
    assert sorted(coactivation_order(np.ones((9, 40), bool))) == list(range(40))


def test_planted_groups_come_together() -> None:
    fired, group = clusters(tokens=600, groups=20, size=30)
    order = coactivation_order(fired)
    ordered = group[order]
    always = fired.mean(axis=0)[order] == 1
    borders = (np.diff(ordered[~always]) != 0).sum()
    assert borders < 2 * 20, "groups are torn apart"
    assert (np.diff(np.flatnonzero(always)) == 1).all(), "what always fires is everyone's friend"


def test_the_order_saves_reads_of_other_tokens() -> None:
    fired, _ = clusters(tokens=900, groups=40, size=30)
    seen, later = fired[:600], fired[600:]
    plain = reads([later], np.arange(1200), 1, 2, 3)
    better = reads([later], coactivation_order(seen), 1, 2, 3)
    assert better.units == plain.units
    assert better.runs < 0.5 * plain.runs
    assert better.joined < 0.3 * plain.joined
    assert better.nbytes(4096) < plain.nbytes(4096)


@pytest.mark.parametrize(("per_unit", "window", "gap"), [(1, 0, 0), (1, 4, 3), (3, 2, 1)])
def test_reads_against_a_slow_twin(per_unit: int, window: int, gap: int) -> None:
    rng = np.random.default_rng(3)
    runs = [rng.random((tokens, 31)) < 0.2 for tokens in (12, 20)]
    order = rng.permutation(31)
    totals, tokens = np.zeros(4), 0
    for run in runs:
        held = [{int(np.flatnonzero(order == n)[0]) // per_unit for n in np.flatnonzero(row)}
                for row in run]  # fmt: skip
        for token in range(window, len(run)):
            before = set().union(*held[max(0, token - window) : token])
            ids = sorted(held[token] - before)
            holes = [b - a - 1 for a, b in itertools.pairwise(ids)]
            totals += (
                len(ids),
                len(ids) - holes.count(0),
                len(ids) - sum(hole <= gap for hole in holes),
                sum(hole for hole in holes if hole <= gap),
            )
            tokens += 1
    found = reads(runs, order, per_unit, window, gap)
    np.testing.assert_allclose([found.units, found.runs, found.joined, found.vain], totals / tokens)


def test_the_window_curve_against_a_slow_twin() -> None:
    rng = np.random.default_rng(4)
    runs = [rng.random((tokens, 25)) < 0.15 for tokens in (50, 80, 10)]
    new, resident, count = np.zeros(MAX_WINDOW + 1), np.zeros(MAX_WINDOW + 1), 0
    for run in runs:
        for token in range(min(MAX_WINDOW, len(run) // 2), len(run)):
            count += 1
            for k in range(MAX_WINDOW + 1):
                before = run[max(0, token - k) : token].any(axis=0)
                new[k] += (run[token] & ~before).sum() / 25
                resident[k] += (run[token] | before).sum() / 25
    curve = window_curve(runs)
    np.testing.assert_allclose(curve.new, new / count)
    np.testing.assert_allclose(curve.resident, resident / count)
    assert curve.new[0] == curve.resident[0]
    assert (np.diff(curve.new) <= 0).all()
    assert (np.diff(curve.resident) >= 0).all()


def test_nothing_measured_is_nothing_needed() -> None:
    assert not window_curve([]).new.any()
