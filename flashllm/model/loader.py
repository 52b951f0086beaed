"""Opening a model: its folder checked, its weights read, its layers wired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flashllm import kernels, machine
from flashllm.cache.units import Progress, ResidentUnits
from flashllm.errors import InvalidInput, UnsupportedModel
from flashllm.flash.format import read_model
from flashllm.flash.reader import UnitReader
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.wiring import Wiring

KV_DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "q8": np.dtype(np.int8),
}
"""Dtypes keys and values may be kept in."""


def load_decoder(
    path: Path,
    *,
    threads: int | None = None,
    backend: str = "cpu",
    kv_dtype: str | None = None,
    io: str = "auto",
    max_tokens_per_step: int = 512,
    on_progress: Progress | None = None,
) -> Decoder:
    """Read the model in folder `path` into memory, ready to run.

    threads: by default one per physical core. kv_dtype: one of KV_DTYPES, by default the
    backend's own ("f16" for cpu). io: how files are read, one of reader.IO_MODES; "auto" is
    "pread". on_progress(bytes read, bytes in all).
    Raises ModelNotFound, CorruptModel, UnsupportedModel, ModelIOError, InvalidInput.
    """
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise InvalidInput(f"keys and values in {kv_dtype!r}: choose one of {sorted(KV_DTYPES)}")
    model = read_model(path)
    config = ModelConfig.from_json(model.manifest.config)
    if (size := config.attention.head_dim) % 16:
        raise UnsupportedModel(f"{path}: heads of {size} elements; multiples of 16 run")
    opened = kernels.load(backend, threads or machine.cpu().usable_cores)
    try:
        # Read once and kept: from a warm page cache pread takes half the time of direct reads.
        with UnitReader(model, io="pread" if io == "auto" else io) as reader:
            units = ResidentUnits(model, reader, on_progress)
        kept_as = KV_DTYPES[kv_dtype] if kv_dtype else opened.kv_dtype
        return Wiring(model, config, opened, units, kept_as, max_tokens_per_step).decoder()
    except BaseException:
        opened.close()
        raise
