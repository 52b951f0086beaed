"""The whole path from a GGUF to logits, held to Hugging Face's float32 Llama at 64 positions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors
import tiny

from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

GOLDEN = Path(__file__).resolve().parent.parent / "data" / "tiny_llama_golden.safetensors"


@pytest.fixture(scope="module")
def golden() -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens int32 [64], logits float32 [64, vocab], and the hash of the weights they are of."""
    with safetensors.safe_open(GOLDEN, "np") as file:
        return (
            file.get_tensor("tokens"),
            file.get_tensor("logits"),
            file.metadata()["weights_sha256"],
        )


def test_the_golden_is_of_the_weights_that_tiny_makes(
    tiny_gguf: Path, golden: tuple[np.ndarray, np.ndarray, str]
) -> None:
    digest = hashlib.sha256()
    for tensor in gguf.GGUFReader(tiny_gguf).tensors:
        digest.update(tensor.data.tobytes())
    assert digest.hexdigest() == golden[2], "tiny.py changed: run tools/make_goldens.py tiny"


# The reference backend is float32 throughout (measured: 1e-6). The cpu backend keeps keys and
# values as f16, which costs it 8e-4 here, as it does llama.cpp.
@pytest.mark.parametrize(("backend", "tolerance"), [("reference", 1e-4), ("cpu", 1.5e-3)])
def test_logits_match_float32_arithmetic(
    tmp_path: Path,
    golden: tuple[np.ndarray, np.ndarray, str],
    backend: str,
    tolerance: float,
) -> None:
    tokens, expected, _ = golden
    decoder = load_decoder(tiny.model_dir(tmp_path), LoadOptions(threads=1, backend=backend))
    sequence = decoder.new_sequence(len(tokens))
    try:
        logits = decoder.step(sequence, tokens, logits="all")
    finally:
        sequence.close()
        decoder.close()
    errors = np.linalg.norm(logits - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert errors.max() <= tolerance
