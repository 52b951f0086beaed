"""Tests of scoring: by hand on small cases, a model against itself and against a perturbed one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from fake_decoder import VOCAB, FakeDecoder

from flashllm.errors import Cancelled, CorruptModel, EngineError, InvalidInput, ModelIOError
from flashllm.generate import score
from flashllm.generate.golden import Golden, read_golden

TOKENS = np.random.default_rng(0).integers(3, VOCAB, 150).astype(np.int32)
WINDOWS = score.split_windows(150, 70)


def logprobs_of(decoder: FakeDecoder) -> np.ndarray:
    """Log-probabilities after each token of its window, by definition."""
    rows = []
    for start, end in WINDOWS:
        for at in range(start, end):
            logits = decoder.logits(TOKENS[start : at + 1].tolist()).astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


class Louder(FakeDecoder):
    """The fake model with its logits scaled, so that its predictions differ smoothly."""

    def logits(self, history: list[int]) -> np.ndarray:
        return super().logits(history) * np.float32(1.1)


def golden_of(decoder: FakeDecoder, k: int = VOCAB) -> Golden:
    logprobs = logprobs_of(decoder)
    ids = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    top = np.take_along_axis(logprobs, ids, axis=1).astype(np.float32)
    return Golden(TOKENS, WINDOWS, ids, top)


def test_windows_cover_the_text() -> None:
    assert WINDOWS == [(0, 70), (70, 140), (140, 150)]
    assert score.split_windows(0) == []
    with pytest.raises(InvalidInput, match="window"):
        score.split_windows(10, 1)


def test_perplexity_by_its_definition() -> None:
    logprobs = logprobs_of(FakeDecoder())
    inner = [at for start, end in WINDOWS for at in range(start, end - 1)]
    expected = np.exp(-np.mean([logprobs[at, TOKENS[at + 1]] for at in inner]))
    result = score.perplexity(FakeDecoder(), TOKENS.tolist(), WINDOWS)
    assert result.tokens == len(inner)
    assert result.perplexity == pytest.approx(expected, rel=1e-9)


def test_a_model_agrees_with_itself() -> None:
    result = score.compare(FakeDecoder(), FakeDecoder(), TOKENS.tolist(), WINDOWS)
    assert (result.mean_kl, result.max_kl, result.top1_agreement) == (0.0, 0.0, 1.0)
    assert result.perplexity == result.reference_perplexity
    assert result.tokens == 150


@pytest.mark.parametrize("k", [VOCAB, 40])
def test_a_model_agrees_with_its_golden(k: int) -> None:
    result = score.compare_golden(FakeDecoder(), golden_of(FakeDecoder(), k))
    assert abs(result.mean_kl) < 1e-6  # the golden is float32
    assert result.top1_agreement == 1.0


def test_divergence_from_another_model_is_exact_with_the_whole_vocabulary() -> None:
    exact = score.compare(Louder(), FakeDecoder(), TOKENS.tolist(), WINDOWS)
    stored = score.compare_golden(Louder(), golden_of(FakeDecoder()))
    theirs, ours = logprobs_of(FakeDecoder()), logprobs_of(Louder())
    by_hand = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    assert exact.mean_kl == pytest.approx(by_hand.mean(), rel=1e-9)
    assert exact.max_kl == pytest.approx(by_hand.max(), rel=1e-9)
    assert stored.mean_kl == pytest.approx(by_hand.mean(), abs=1e-6)
    assert stored.perplexity == exact.perplexity


def test_divergence_over_few_tokens_is_a_lower_bound() -> None:
    whole = score.compare_golden(Louder(), golden_of(FakeDecoder())).mean_kl
    kls = [score.compare_golden(Louder(), golden_of(FakeDecoder(), k)).mean_kl for k in (5, 50)]
    assert 0 < kls[0] <= kls[1] <= whole


def test_top1_counts_disagreements() -> None:
    golden = golden_of(FakeDecoder())
    swapped = golden.top_ids.copy()
    swapped[:15, [0, 1]] = swapped[:15, [1, 0]]
    result = score.compare_golden(FakeDecoder(), dataclasses.replace(golden, top_ids=swapped))
    assert result.top1_agreement == pytest.approx(0.9)


def test_too_little_text() -> None:
    for tokens in ([], [5]):
        with pytest.raises(InvalidInput, match="too short"):
            score.perplexity(FakeDecoder(), tokens, score.split_windows(len(tokens)))


def test_bad_numbers_are_an_error() -> None:
    decoder = FakeDecoder()
    decoder.poison = float("nan")
    with pytest.raises(EngineError):
        score.perplexity(decoder, TOKENS.tolist(), WINDOWS)
    assert decoder.sequences[0].closed


def test_progress_and_cancel() -> None:
    seen: list[tuple[int, int]] = []
    score.perplexity(FakeDecoder(), TOKENS.tolist(), WINDOWS, lambda *at: seen.append(at))
    assert seen[-1] == (150, 150)
    assert seen == sorted(seen)

    def stop(done: int, total: int) -> None:
        raise Cancelled("enough")

    decoder = FakeDecoder()
    with pytest.raises(Cancelled):
        score.perplexity(decoder, TOKENS.tolist(), WINDOWS, stop)
    assert decoder.sequences[0].closed


def write(path: Path, **changes: Any) -> Path:
    golden = golden_of(FakeDecoder(), 8)
    arrays = {
        "tokens": golden.tokens,
        "windows": np.array(golden.windows, dtype=np.int32),
        "top_ids": golden.top_ids,
        "top_logprobs": golden.top_logprobs,
        **changes,
    }
    safetensors.numpy.save_file({k: v for k, v in arrays.items() if v is not None}, path)
    return path


def test_goldens_are_read_back(tmp_path: Path) -> None:
    golden = read_golden(write(tmp_path / "golden.safetensors"), VOCAB)
    assert score.compare_golden(FakeDecoder(), golden).top1_agreement == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": None},
        {"tokens": TOKENS.astype(np.int64)},
        {"tokens": TOKENS + 1000},
        {"tokens": TOKENS[:-1]},
        {"windows": np.array([[0, 151]], dtype=np.int32)},
        {"windows": np.array([[5, 5]], dtype=np.int32)},
        {"windows": np.array([[-1, 5]], dtype=np.int32)},
        {"windows": np.array([[0, 5, 9]], dtype=np.int32)},
        {"top_ids": np.full((150, 8), -1, dtype=np.int32)},
        {"top_logprobs": np.full((150, 8), 1, dtype=np.float32)},
        {"top_logprobs": np.full((150, 8), np.nan, dtype=np.float32)},
        {"top_logprobs": np.zeros((150, 9), dtype=np.float32)},
    ],
)
def test_goldens_that_lie_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorruptModel, match=r"golden\.safetensors"):
        read_golden(write(tmp_path / "golden.safetensors", **changes), VOCAB)


def test_files_that_are_no_goldens_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    with pytest.raises(ModelIOError):
        read_golden(path, VOCAB)
    path.write_bytes(b"x" * 50)
    with pytest.raises(CorruptModel):
        read_golden(path, VOCAB)
