"""The real model's logits are bitwise the same however its tokens and threads are arranged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from flashllm.generate.golden import read_golden
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

pytestmark = pytest.mark.slow

TOKENS = 96


@pytest.fixture(scope="module")
def tokens(data: Path) -> np.ndarray:
    return read_golden(data / "smollm2_golden.safetensors", 49152).tokens[:TOKENS]


def logits(
    model_path: Path, pieces: Sequence[np.ndarray], *, threads: int, chunk: int = 512
) -> np.ndarray:
    """Logits [T, vocab] after each token of `pieces`, given one step after another."""
    decoder = load_decoder(model_path, LoadOptions(threads=threads), step_tokens=chunk)
    sequence = decoder.new_sequence(TOKENS)
    try:
        return np.concatenate([decoder.step(sequence, piece, logits="all") for piece in pieces])
    finally:
        sequence.close()
        decoder.close()


@pytest.fixture(scope="module")
def expected(model_path: Path, tokens: np.ndarray) -> np.ndarray:
    """All tokens in one step on one thread."""
    return logits(model_path, [tokens], threads=1)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_token_by_token(
    model_path: Path, tokens: np.ndarray, expected: np.ndarray, threads: int
) -> None:
    pieces = [tokens[i : i + 1] for i in range(TOKENS)]
    np.testing.assert_array_equal(logits(model_path, pieces, threads=threads), expected)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_thread_counts(
    model_path: Path, tokens: np.ndarray, expected: np.ndarray, threads: int
) -> None:
    np.testing.assert_array_equal(logits(model_path, [tokens], threads=threads), expected)


@pytest.mark.parametrize("cuts", [(1,), (17, 18), (32, 64), (5, 12, 31, 90)])
def test_uneven_steps(
    model_path: Path, tokens: np.ndarray, expected: np.ndarray, cuts: tuple[int, ...]
) -> None:
    np.testing.assert_array_equal(logits(model_path, np.split(tokens, cuts), threads=2), expected)


@pytest.mark.parametrize("chunk", [1, 7, 32])
def test_chunks_of_a_step(
    model_path: Path, tokens: np.ndarray, expected: np.ndarray, chunk: int
) -> None:
    np.testing.assert_array_equal(logits(model_path, [tokens], threads=2, chunk=chunk), expected)


def test_after_a_rollback(model_path: Path, tokens: np.ndarray, expected: np.ndarray) -> None:
    decoder = load_decoder(model_path, LoadOptions(threads=2))
    sequence = decoder.new_sequence(TOKENS)
    try:
        decoder.step(sequence, tokens[::-1], logits="none")
        sequence.truncate(0)
        decoder.step(sequence, tokens[:40], logits="none")
        sequence.truncate(20)
        rest = decoder.step(sequence, tokens[20:], logits="all")
    finally:
        sequence.close()
        decoder.close()
    np.testing.assert_array_equal(rest, expected[20:])
