"""The real model's predictions for ordinary English, held to float32 arithmetic's."""

from __future__ import annotations

from pathlib import Path

import pytest

from flashllm.generate import score
from flashllm.generate.golden import Golden, read_golden
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

pytestmark = pytest.mark.slow

VOCAB = 49152
GOLDEN_PERPLEXITY = 27.7153  # tools/make_goldens.py smollm2
LLAMA_CPP_MEAN_KL = 0.002151  # tools/compare_llama_cpp.py quality, on the committed golden
LLAMA_CPP_TOP1 = 0.97254


@pytest.fixture(scope="module")
def golden(data: Path) -> Golden:
    return read_golden(data / "smollm2_golden.safetensors", VOCAB)


def compare(model_path: Path, golden: Golden, backend: str) -> score.Comparison:
    decoder = load_decoder(model_path, LoadOptions(backend=backend))
    try:
        return score.compare_golden(decoder, golden)
    finally:
        decoder.close()


def test_the_golden_is_of_the_english_text(model_path: Path, golden: Golden, data: Path) -> None:
    text = (data / "english.txt").read_text(encoding="utf-8")
    assert Tokenizer.from_dir(model_path).encode(text) == golden.tokens.tolist()
    assert len(golden.tokens) >= 2048


def test_the_reference_backend_is_float32_arithmetic(model_path: Path, golden: Golden) -> None:
    found = compare(model_path, golden, "reference")
    assert found.mean_kl <= 1e-5
    assert found.perplexity == pytest.approx(GOLDEN_PERPLEXITY, rel=1e-4)


def test_the_fast_kernels_predict_no_worse_than_llama_cpp(model_path: Path, golden: Golden) -> None:
    found = compare(model_path, golden, "cpu")
    assert found.mean_kl <= LLAMA_CPP_MEAN_KL
    assert found.top1_agreement >= LLAMA_CPP_TOP1
    assert found.perplexity == pytest.approx(GOLDEN_PERPLEXITY, rel=0.005)
