"""Opening a model: its folder checked, its memory planned, its weights read, its layers wired."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from flashllm import kernels, machine, read_speed_file
from flashllm.cache.pinned import Progress
from flashllm.cache.policy import SPARSE_ROWS
from flashllm.cache.read_cost import read_gap
from flashllm.cache.units import Units
from flashllm.disk_curve import DiskCurve
from flashllm.errors import UnsupportedModel
from flashllm.flash.format import read_model
from flashllm.kernels import soundness
from flashllm.kernels.compiling import Compilable
from flashllm.kernels.slots import BOOKKEEPING
from flashllm.kernels.weights import KV_NAMES
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.ffn_parts import extra_bytes, neurons_per_unit
from flashllm.model.fit import fit
from flashllm.model.memory import STEP_TOKENS, kv_bytes, scratch_bytes
from flashllm.model.options import LoadOptions
from flashllm.model.plan import Needs
from flashllm.model.scan import neurons_at_once, scan_of
from flashllm.model.sparse_wiring import check_sparse
from flashllm.model.wiring import Wiring

KV_DTYPES: dict[str, np.dtype[Any]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "q8": np.dtype(np.int8),
}
"""Dtypes keys and values may be kept in."""


def describe(path: Path) -> tuple[ModelConfig, int]:
    """The shape of the model in folder `path`, and the bytes of its weights.

    Raises ModelNotFound, CorruptModel, UnsupportedModel, ModelIOError.
    """
    model = read_model(path)
    return ModelConfig.from_json(model.manifest.config), model.unit_bytes


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
    if asked.sparse:
        check_sparse(model, config, asked.sparse)
    scan = scan_of(config, model.offsets, model.manifest.codec, sparse=asked.sparse)
    threads = asked.threads or machine.cpu().usable_cores
    every = itertools.chain(*model.parts.values())
    backend = kernels.load(asked.backend, threads)
    try:
        kv_dtype = asked.kv_dtype or KV_NAMES[backend.kv_dtype.name]
        budget = asked.budget(model.unit_bytes)
        step_tokens = max(min(step_tokens, n_ctx), SPARSE_ROWS if asked.sparse else 1)
        needs = Needs(
            config,
            scan,
            neurons_at_once(scan, neurons_per_unit(model.parts)),
            kv_dtype,
            extra=extra_bytes(every, config, asked.sparse, threads),
        )
        scratch = scratch_bytes(config, needs.neurons, n_ctx, step_tokens) + needs.extra
        kv = kv_bytes(config, n_ctx, kv_dtype)
        residency = fit(
            scan,
            budget,
            kv=kv,
            scratch=scratch,
            taken=taken,
            fitting_context=lambda: needs.largest_context((budget or 0) - taken, n_ctx),
        )
        gap = read_gap(_disk_curve(path)) if asked.sparse else 0
        units = Units(model, residency, asked.io, window=asked.window, gap=gap)
        wiring = Wiring(
            model, config, backend, units, KV_DTYPES[kv_dtype], step_tokens, asked.sparse
        )
        decoder = wiring.decoder(budget, scratch)
        # Before weights take the memory that there is.
        others: list[Compilable] = [*BOOKKEEPING] if asked.sparse else []
        others += [soundness.walk] if model.manifest.codec == "bitmap" else []
        backend.prepare(others, memory_is_short=budget is not None)
        units.load(on_progress)
        return decoder
    except BaseException:
        backend.close()
        raise


def _disk_curve(path: Path) -> DiskCurve | None:
    """What was measured of the disk under `path`; None if nothing was."""
    try:
        speed = read_speed_file.load(read_speed_file.file_for(path))
    except OSError:
        return None
    return speed.disk if speed else None
