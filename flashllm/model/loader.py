"""Opening a model: its folder checked, its memory planned, its weights read, its layers wired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from flashllm import kernels, machine
from flashllm.cache.pinned import Progress
from flashllm.cache.units import Units
from flashllm.errors import UnsupportedModel
from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.parts import FFNPart
from flashllm.kernels.weights import KV_NAMES
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.fit import fit
from flashllm.model.memory import STEP_TOKENS, kv_bytes, scratch_bytes
from flashllm.model.options import LoadOptions
from flashllm.model.plan import Needs
from flashllm.model.scan import scan_of
from flashllm.model.wiring import Wiring

KV_DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "q8": np.dtype(np.int8),
}
"""Dtypes keys and values may be kept in."""


def load_decoder(
    path: Path,
    options: LoadOptions | None = None,
    *,
    taken: int = 0,
    step_tokens: int = STEP_TOKENS,
    on_progress: Progress = lambda done, total: None,
) -> Decoder:
    """The model in folder `path`, ready to run, within the memory that `options` allow.

    taken: bytes of that memory which other models in this process hold. on_progress(bytes read,
    bytes in all).
    Raises ModelNotFound, CorruptModel, UnsupportedModel, ModelIOError, InvalidInput; OutOfBudget
    if not even streaming the weights fits.
    """
    asked = options or LoadOptions()
    model = read_model(path)
    config = ModelConfig.from_json(model.manifest.config)
    if (size := config.attention.head_dim) % 16:
        raise UnsupportedModel(f"{path}: heads of {size} elements; multiples of 16 run")
    n_ctx = asked.context(config)
    scan = scan_of(config, {name: group.offsets.tolist() for name, group in model.groups.items()})
    backend = kernels.load(asked.backend, asked.threads or machine.cpu().usable_cores)
    try:
        kv_dtype = asked.kv_dtype or KV_NAMES[backend.kv_dtype.name]
        budget = asked.budget(model.unit_bytes)
        step_tokens = min(step_tokens, n_ctx)
        needs = Needs(config, scan, _padded_neurons(model), kv_dtype)
        scratch = scratch_bytes(config, needs.neurons, n_ctx, step_tokens)
        kv = kv_bytes(config, n_ctx, kv_dtype)
        residency = fit(
            scan,
            budget,
            kv=kv,
            scratch=scratch,
            taken=taken,
            fitting_context=lambda: needs.largest_context((budget or 0) - taken, n_ctx),
        )
        units = Units(model, residency, config.n_layers, asked.io)
        wiring = Wiring(model, config, backend, units, KV_DTYPES[kv_dtype], step_tokens)
        decoder = wiring.decoder(budget, scratch)
        backend.prepare()
        units.load(on_progress)
        return decoder
    except BaseException:
        backend.close()
        raise


def _padded_neurons(model: FlashModel) -> int:
    """Neurons of the widest feed-forward, with those that fill its last unit."""
    parts = [part for group in model.groups.values() for part in group.parts]
    return max((p.units * p.neurons_per_unit for p in parts if isinstance(p, FFNPart)), default=0)
