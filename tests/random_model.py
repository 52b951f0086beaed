"""Random weights for any ModelConfig: as arrays by role, and as a flash model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy

from flashllm.flash.codecs import PACK_FFN, pack_matrix
from flashllm.flash.manifest import SMALL_FILE, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import dequantize, quantize
from flashllm.flash.units_file import GroupPlan
from flashllm.flash.writer import ModelWriter
from flashllm.model.config import ModelConfig
from flashllm.model.roles import ATTENTION, roles

Weights = dict[str, np.ndarray]


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """float32 by role: matrices N(0, 1/sqrt(cols)), norms near 1, biases and positions small."""
    rng = np.random.default_rng(seed)
    weights = {}
    for role, shape in roles(config).items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        if role.endswith("_bias") or role == "positions":
            weights[role] = noise * np.float32(0.3)
        elif len(shape) == 1:
            weights[role] = 1 + noise * np.float32(0.1)
        else:
            weights[role] = noise / np.float32(np.sqrt(shape[1]))
    return weights


def write_model(
    target: Path, config: ModelConfig, weights: Weights, dtype: str = "f32", codec: str = "tile"
) -> Path:
    """A flash model of these weights."""
    plans, units = [], []

    def add_matrices(name: str, prefix: str, names: tuple[str, ...]) -> None:
        parts: list[MatrixPart] = []
        for role in names:
            values = weights[prefix + role]
            first = sum(part.units for part in parts)
            part = MatrixPart.plan(role, dtype, *values.shape, first)
            parts.append(part)
            units.extend(pack_matrix(quantize(values, dtype), part))
        plans.append(GroupPlan(name, tuple(parts)))

    def add_ffn(prefix: str) -> None:
        ffn = config.ffn
        part = FFNPart.plan(
            "ffn", codec, (dtype if ffn.gated else None, dtype, dtype), ffn.size,
            config.hidden_size, 0,
        )  # fmt: skip
        gate = quantize(weights[f"{prefix}ffn_gate"], dtype) if ffn.gated else None
        up, down = weights[f"{prefix}ffn_up"], weights[f"{prefix}ffn_down"]
        if codec == "row":
            down = np.ascontiguousarray(down.T)
        units.extend(PACK_FFN[codec](gate, quantize(up, dtype), quantize(down, dtype), part))
        plans.append(GroupPlan(f"{prefix}ffn", (part,)))

    add_matrices("embed", "", ("embed",))
    if config.learned_positions:
        add_matrices("positions", "", ("positions",))
    for i in range(config.n_layers):
        add_matrices(f"layers.{i}.attn", f"layers.{i}.", ATTENTION)
        add_ffn(f"layers.{i}.")
    if not config.tied_head:
        add_matrices("output", "", ("output",))
    vectors = {role: values for role, values in weights.items() if values.ndim == 1}
    with ModelWriter(target) as writer:
        writer.add_file(SMALL_FILE, safetensors.numpy.save(vectors))
        writer.add_units(plans, iter(units))
        return writer.publish(
            Manifest(
                name="random",
                created_by="tests",
                config=config.to_json(),
                codec=codec,
                dtype=dtype,
                groups=writer.groups,
                source={},
                licence=None,
                loss=None,
                files=writer.files,
            )
        )


def stored(weights: Weights, dtype: str) -> Weights:
    """What the matrices of a model in codec `tile` are after they were stored in `dtype`."""
    return {
        role: dequantize(quantize(values, dtype)) if values.ndim == 2 else values
        for role, values in weights.items()
    }
