"""A tiny Llama with ReLU gates of codec row, with a tokeniser and, if wanted, predictors."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from flashllm.convert.predictor import Predictor
from flashllm.convert.rewriting import rewrite
from flashllm.flash import layout
from flashllm.flash.format import read_model
from flashllm.flash.manifest import Manifest
from flashllm.model.loader import load_decoder
from flashllm.model.memory import kv_bytes
from flashllm.model.options import LoadOptions, Sparse

LAYERS, HIDDEN, NEURONS, VOCAB = 6, 64, 256, 320
LAYER_BYTES = NEURONS << 12
N_CTX = 64
SHAPE: dict[str, Any] = {"layers": LAYERS, "hidden": HIDDEN, "ffn": NEURONS, "vocab": VOCAB}
RECALL, FALSE_POSITIVES = 0.96, 0.05
SPARSITY: dict[str, Any] = {
    "text_tokens": 1000,
    "order": "none",
    "layers": [
        {
            "rank": HIDDEN,
            "recall": RECALL,
            "false_positives": FALSE_POSITIVES,
            "active": 0.5,
            "predicted": 0.5,
        }
    ]
    * LAYERS,
    "window": [0.5 ** (k + 1) for k in range(33)],
    "resident": [1 - 0.5 ** (k + 1) for k in range(33)],
}


def write(folder: Path, *, calibrated: bool = True) -> Path:
    """A model in a new folder of `folder`. About half of its neurons fire; each is a unit of 4 KiB.

    Its predictors are the gates themselves, in 8 bits, with a small bias: nearly always right.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROW_UNIT", 1)
        return _write(folder, calibrated)


def _write(folder: Path, calibrated: bool) -> Path:
    path = tiny.model_dir(folder, codec="row", **SHAPE)
    _to_relu(path / "manifest.json")
    if not calibrated:
        return path
    weights = tiny.random_weights(LAYERS, HIDDEN, NEURONS, 4, 2, VOCAB)
    predictors = [
        Predictor(
            np.eye(HIDDEN, dtype=np.float32),
            weights[f"blk.{i}.ffn_gate.weight"],
            np.full(NEURONS, 0.02, np.float32),
        )
        for i in range(LAYERS)
    ]
    target = Path(tempfile.mkdtemp(dir=folder)) / "sparse.flash"
    nothing: list[np.ndarray | None] = [None] * LAYERS
    model = read_model(path)
    return rewrite(model, target, orders=nothing, predictors=predictors, sparsity=SPARSITY)


def budget(folder: Path, sparse: Sparse, layers: float) -> int:
    """What leaves room for the neurons of so many layers, a context of N_CTX and nothing more."""
    decoder = load_decoder(folder, LoadOptions(None, N_CTX, 1, sparse=sparse))
    try:
        kv = kv_bytes(decoder.config, N_CTX, decoder.kv_dtype)
        return decoder.least_budget(kv=kv) + int((layers - 1) * LAYER_BYTES)
    finally:
        decoder.close()


def _to_relu(file: Path) -> None:
    """Change a model's activation, of which GGUF headers say nothing."""
    manifest = Manifest.from_bytes(file.read_bytes(), "tests")
    ffn = manifest.config["ffn"] | {"activation": "relu"}
    changed = dataclasses.replace(manifest, config=manifest.config | {"ffn": ffn})
    file.write_bytes(changed.to_bytes())
