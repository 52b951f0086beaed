"""The tiny models of make_family_goldens.py, as Hugging Face folders and GGUF files."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from family_gguf import write_family_gguf
from family_weights import digest, make_weights
from safetensors.numpy import save_file
from tiny_hf import write_tokenizer

DATA = Path(__file__).resolve().parent / "data"


@functools.cache
def variants() -> dict[str, Any]:
    """Every variant's config, shapes of tensors, mean of norms and hash of weights."""
    return json.loads(gzip.decompress((DATA / "families.json.gz").read_bytes()))


def golden(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens int32 [64]; logits float32 [64, columns] and which columns these are, int32."""
    with safetensors.safe_open(DATA / "families.safetensors", "np") as file:
        return tuple(file.get_tensor(key) for key in ("tokens", name, "columns"))


def weights(name: str) -> dict[str, np.ndarray]:
    """A variant's tensors by Hugging Face's names."""
    about = variants()[name]
    made = make_weights(about["shapes"], about["norm_mean"])
    assert digest(made) == about["sha256"], "other weights: run tools/make_family_goldens.py"
    return made


def write_folder(name: str, folder: Path) -> Path:
    """A variant as a Hugging Face folder, with a tokeniser; returns it."""
    folder.mkdir(parents=True)
    config = variants()[name]["config"]
    vocab = config.get("text_config", config)["vocab_size"]
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, vocab)
    save_file(weights(name), folder / "model.safetensors", {"format": "pt"})
    return folder


def write_gguf(name: str, path: Path) -> Path:
    """A variant as a GGUF file; returns it."""
    return write_family_gguf(path, variants()[name]["config"], weights(name))
