"""Running sparse: as dense where the choice of neurons is exact, at any budget and window."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import sparse_model
import streamed

from flashllm.errors import InvalidInput, UnsupportedModel
from flashllm.model.decoder import Decoder
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

TOKENS = [5, 900, 33, 7, 1200, 64, 5, 2, 77, 31, 8, 1999, 40, 41, 42, 3]


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OPT's kind: ReLU without gates, with biases."""
    return streamed.write(tmp_path_factory.mktemp("opt") / "m", codec="row", positions=True)


@pytest.fixture(scope="module")
def relu_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama's kind with ReLU gates."""
    return streamed.write(
        tmp_path_factory.mktemp("llama") / "m", codec="row", activation="relu", dtype="q8"
    )


@pytest.fixture(scope="module")
def relu_falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of parallel blocks."""
    folder = tmp_path_factory.mktemp("falcon") / "m"
    return streamed.write(folder, codec="row", activation="relu", parallel=True)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 11 neurons a unit, two pages, with 5 left for the last one of each layer, a page."""
    folder = tmp_path_factory.mktemp("uneven") / "m"
    return streamed.write(folder, codec="row", positions=True, row_unit=5500)


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


def one_by_one(decoder: Decoder) -> np.ndarray:
    sequence = decoder.new_sequence(96)
    rows = [decoder.step(sequence, [token])[0] for token in TOKENS]
    sequence.close()
    return np.array(rows)


def dense(folder: Path, **options: object) -> np.ndarray:
    decoder = load_decoder(folder, LoadOptions(mem_budget=None, n_ctx=96, **options))  # type: ignore[arg-type]
    try:
        return one_by_one(decoder)
    finally:
        decoder.close()


def budgets(folder: Path, sparse: str) -> list[int | None]:
    """No limit, the least, and some between."""
    decoder = load_decoder(folder, LoadOptions(mem_budget=None, n_ctx=96, sparse=sparse))  # type: ignore[arg-type]
    least = decoder.least_budget(kv=decoder.new_sequence(96).nbytes)
    weights = decoder.resident_bytes
    decoder.close()
    return [None, least, least + weights // 4, least + weights // 2]


@pytest.mark.parametrize("sparse", ["oracle", "gate"])
@pytest.mark.parametrize("window", [None, 0, 1, 4])
@pytest.mark.parametrize("model", ["opt", "relu_llama", "relu_falcon", "uneven"])
def test_exact_choice_gives_the_dense_result_at_every_budget_and_window(
    model: str, window: int | None, sparse: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    expected = dense(folder)
    for budget in budgets(folder, sparse):
        options = LoadOptions(mem_budget=budget, n_ctx=96, sparse=sparse, window=window)  # type: ignore[arg-type]
        decoder = load_decoder(folder, options)
        try:
            assert np.array_equal(one_by_one(decoder), expected), budget
            counts = decoder.sparse_counts
            assert counts is not None
            assert counts.tokens == len(TOKENS)
            assert 0 < counts.fired < counts.neurons
        finally:
            decoder.close()


@pytest.mark.parametrize("window", [None, 0, 2])
def test_predictors_choose_alike_at_every_budget_and_foresee_reads(
    window: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sparse_model.write(tmp_path)
    monkeypatch.setattr("test_sparse.TOKENS", [token % 300 for token in TOKENS])
    resident = load_decoder(folder, LoadOptions(None, 96, sparse="predictor"))
    expected = one_by_one(resident)
    resident.close()
    for layers in (1, 1.2, 3):
        budget = sparse_model.budget(folder, "predictor", layers)
        options = LoadOptions(budget, 64, sparse="predictor", window=window)
        decoder = load_decoder(folder, options)
        cache = decoder._units._neurons  # type: ignore[attr-defined]
        with mock.patch.object(cache, "prefetch", wraps=cache.prefetch) as prefetch:
            assert np.array_equal(one_by_one(decoder), expected), layers
        assert prefetch.call_count == len(TOKENS) * sparse_model.LAYERS
        cache.check_integrity()
        decoder.close()


def test_how_sure_to_be_of_a_guess_is_learned_from_guesses(tmp_path: Path) -> None:
    decoder = load_decoder(sparse_model.write(tmp_path), LoadOptions(None, 64, sparse="predictor"))
    path = decoder._layers[2].sparse
    assert path is not None
    scores, ffn = path.ffn._s.scores.values[0], path.ffn
    scores[:] = np.linspace(-1, 1, len(scores))
    thresholds, vain = [], []
    for step in range(120):
        if step == 60:  # from now on what follows is less, so that guesses are in vain
            scores[:] -= 0.2
        ffn._guess = ffn._foreseen(1)
        chosen = np.flatnonzero(scores > (0.4 if step >= 60 else 0))
        vain.append(len(set(ffn._guess.tolist()) - set(chosen.tolist())) / len(chosen))
        ffn._learn(chosen)
        thresholds.append(float(ffn._threshold))
    decoder.close()
    assert 0 < np.mean(vain[40:60]) < 0.1 > np.mean(vain[100:])
    assert max(vain[60:64]) > 0.3
    assert thresholds[119] - thresholds[59] == pytest.approx(0.4, abs=0.05)


def test_few_tokens_at_once_are_as_one_by_one(opt: Path) -> None:
    least = budgets(opt, "gate")[1]
    decoder = load_decoder(opt, LoadOptions(mem_budget=least, n_ctx=96, sparse="gate"))
    alone = one_by_one(decoder)
    sequence = decoder.new_sequence(96)
    together = [decoder.step(sequence, TOKENS[i : i + 8], logits="all") for i in (0, 8)]
    decoder.close()
    assert np.array_equal(np.concatenate(together), alone)


def test_prompts_are_dense_and_replies_go_on_from_them(opt: Path) -> None:
    least = budgets(opt, "gate")[1]
    for budget in (None, least):
        decoder = load_decoder(opt, LoadOptions(mem_budget=budget, n_ctx=96, sparse="gate"))
        sequence = decoder.new_sequence(96)
        decoder.step(sequence, TOKENS[:12])
        counts = decoder.sparse_counts
        assert counts is not None
        assert counts.tokens == 0
        last = [decoder.step(sequence, [token])[0] for token in TOKENS[12:]]
        decoder.close()
        assert np.array_equal(last, dense(opt)[12:])


def test_a_window_brings_less(opt: Path) -> None:
    """With the same tokens over and over, a window that spans them reads nothing new."""
    least = budgets(opt, "gate")[1]
    assert least is not None
    read = {}
    for window in (0, 1):
        options = LoadOptions(mem_budget=least + 1_500_000, n_ctx=96, sparse="gate", window=window)
        decoder = load_decoder(opt, options)
        sequence = decoder.new_sequence(96)
        for _ in range(3):
            decoder.step(sequence, [7])
            sequence.truncate(0)
        before = decoder.traffic
        decoder.step(sequence, [7])
        read[window] = (decoder.traffic - before).read_bytes
        decoder.close()
    assert read[1] < read[0]


def test_what_cannot_run_sparse_says_what_to_do(opt: Path, tmp_path: Path) -> None:
    tile = streamed.write(tmp_path / "tile", positions=True)
    silu = streamed.write(tmp_path / "silu", codec="row")
    for folder, sparse, hint in (
        (tile, "gate", "convert --codec row"),
        (silu, "gate", "without --sparse"),
        (opt, "predictor", "flashllm calibrate"),
    ):
        with pytest.raises(UnsupportedModel, match=hint):
            load_decoder(folder, LoadOptions(n_ctx=96, sparse=sparse))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="--sparse"):
        LoadOptions(window=3)


def test_dense_steps_can_be_observed_piece_by_piece(opt: Path) -> None:
    decoder = load_decoder(opt, LoadOptions(mem_budget=None, n_ctx=96))
    seen: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
    decoder.observe(
        lambda layer, first, x, hidden: seen.setdefault(layer, []).append(
            (first, x.copy(), hidden.copy())
        )
    )
    sequence = decoder.new_sequence(96)
    decoder.step(sequence, TOKENS)
    decoder.observe(None)
    decoder.step(sequence, [1])
    decoder.close()
    assert sorted(seen) == list(range(streamed.LAYERS))
    for pieces in seen.values():
        ends = np.cumsum([hidden.shape[1] for _, _, hidden in pieces])
        assert [first for first, _, _ in pieces] == [0, *ends[:-1]]
        assert ends[-1] == 192
        assert all(x.shape == (len(TOKENS), 64) for _, x, _ in pieces)
        assert all((hidden >= 0).all() for _, _, hidden in pieces)
