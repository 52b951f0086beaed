"""Every family and every part it may have, from both sources, held to Hugging Face's float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from family_gguf import INEXPRESSIBLE
from family_models import golden, variants, write_folder, write_gguf

from flashllm.convert import convert
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

TOLERANCE = 1e-4
"""Of the largest logit; measured are 2e-6 at most."""

KV_DTYPES = {"reference": None, "cpu": "f32"}


@pytest.mark.parametrize("name", variants())
def test_a_hugging_face_folder_gives_the_golden_logits(tmp_path: Path, name: str) -> None:
    model = convert(write_folder(name, tmp_path / "source"), tmp_path / "model")
    for backend in KV_DTYPES:
        assert error(name, model, backend) <= TOLERANCE, backend


@pytest.mark.parametrize("name", sorted(variants().keys() - INEXPRESSIBLE))
def test_a_gguf_file_gives_the_golden_logits(tmp_path: Path, name: str) -> None:
    model = convert(write_gguf(name, tmp_path / "source.gguf"), tmp_path / "model")
    assert error(name, model, "cpu") <= TOLERANCE


def error(name: str, model: Path, backend: str) -> float:
    """The largest difference from the golden logits, relative to the largest of them.

    On the cpu backend, tokens must give the same bits one by one.
    """
    tokens, expected, columns = golden(name)
    decoder = load_decoder(
        model, LoadOptions(threads=1, backend=backend, kv_dtype=KV_DTYPES[backend])
    )
    try:
        whole, single = decoder.new_sequence(len(tokens)), decoder.new_sequence(len(tokens))
        logits = decoder.step(whole, tokens, logits="all")
        if backend == "cpu":
            steps = [decoder.step(single, tokens[i : i + 1]) for i in range(len(tokens))]
            assert np.array_equal(np.concatenate(steps), logits), "decode differs from prefill"
        whole.close()
        single.close()
    finally:
        decoder.close()
    return float(np.abs(logits[:, columns] - expected).max() / np.abs(expected).max())
