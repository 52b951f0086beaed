"""Seeded weights for any model, by the names of its tensors: shared by tests and golden makers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def make_weights(
    shapes: Mapping[str, tuple[int, ...]], norm_mean: float = 1.0
) -> dict[str, np.ndarray]:
    """Float32 tensors, each seeded by its name, so that logits come out of order 1.

    Matrices are N(0, 1 / cols). Norms are norm_mean + N(0, 0.1), biases N(0, 0.2).
    """
    return {name: _tensor(name, tuple(shape), norm_mean) for name, shape in shapes.items()}


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """A hash over all tensors in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return found.hexdigest()


def _tensor(name: str, shape: tuple[int, ...], norm_mean: float) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        return noise / np.float32(np.sqrt(shape[-1]))
    if name.endswith(".bias"):
        return noise * np.float32(0.2)
    return np.float32(norm_mean) + noise * np.float32(0.1)
