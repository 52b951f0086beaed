"""The groups of units that a checkpoint becomes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flashllm.flash.layout import BITMAP_SCALE_BYTES
from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.units_file import GroupPlan
from flashllm.model.config import ModelConfig
from flashllm.model.roles import ATTENTION, FEED_FORWARD, Shape, roles

Densities = Mapping[str, float]
"""Shares of the weights of matrices that are not zero, by role."""


def plan_groups(
    config: ModelConfig,
    dtypes: Mapping[str, str],
    codec: str,
    densities: Densities = MappingProxyType({}),
) -> list[GroupPlan]:
    """The groups of the flash model, in the order they are written and used.

    dtypes: the flash dtype of every matrix, by role. densities: of matrices that become bitmaps if
    that makes them smaller; a feed-forward network becomes them as a whole.
    """
    shapes = roles(config)
    plans = [_matrix_group(shapes, dtypes, "embed", ("embed",))]
    if config.learned_positions:
        plans.append(_matrix_group(shapes, dtypes, "positions", ("positions",)))
    for i in range(config.n_layers):
        prefix = f"layers.{i}."
        name = f"{prefix}attn"
        plans.append(_matrix_group(shapes, dtypes, name, ATTENTION, prefix, densities))
        plans.append(_ffn_group(config, dtypes, prefix, codec, densities))
    if not config.tied_head:
        plans.append(_matrix_group(shapes, dtypes, "output", ("output",)))
    return plans


def predictor_plan(
    layer: int, rank: int, hidden: int, neurons: int, dtype: str = "q8"
) -> GroupPlan:
    """The group of a layer's predictor: score = up @ (down @ x) + bias, the bias kept elsewhere.

    down is [rank, hidden], up [neurons, rank]. Predictors follow all other groups of a model.
    """
    down = MatrixPart.plan("predictor_down", dtype, rank, hidden, 0)
    up = MatrixPart.plan("predictor_up", dtype, neurons, rank, down.units)
    return GroupPlan(f"layers.{layer}.predictor", (down, up))


def _matrix_group(
    shapes: Mapping[str, Shape],
    dtypes: Mapping[str, str],
    name: str,
    group_roles: tuple[str, ...],
    prefix: str = "",
    densities: Densities = MappingProxyType({}),
) -> GroupPlan:
    parts: list[Part] = []
    kept: dict[str, float] = {}
    first = 0
    for role in group_roles:
        rows, cols = shapes[prefix + role]
        dtype, density = dtypes[prefix + role], densities.get(prefix + role)
        part = MatrixPart.plan(role, dtype, rows, cols, first)
        if density is not None and dtype in BITMAP_SCALE_BYTES:
            bitmap = MatrixPart.plan(role, dtype, rows, cols, first, "bitmap")
            if _is_smaller(bitmap, density, part):
                part, kept[role] = bitmap, density
        parts.append(part)
        first += part.units
    return GroupPlan(name, tuple(parts), kept)


def _ffn_group(
    config: ModelConfig, dtypes: Mapping[str, str], prefix: str, codec: str, densities: Densities
) -> GroupPlan:
    gate, up, down = (prefix + role for role in FEED_FORWARD)
    named = (dtypes.get(gate), dtypes[up], dtypes[down])
    shape = (config.ffn.size, config.hidden_size)
    part = FFNPart.plan("ffn", codec, named, *shape, first_unit=0)
    found = [role for role in (gate, up, down) if role in dtypes]
    if all(role in densities and dtypes[role] in BITMAP_SCALE_BYTES for role in found):
        density = sum(densities[role] for role in found) / len(found)
        bitmap = FFNPart.plan("ffn", "bitmap", named, *shape, first_unit=0)
        if _is_smaller(bitmap, density, part):
            return GroupPlan(f"{prefix}ffn", (bitmap,), {part.role: density})
    return GroupPlan(f"{prefix}ffn", (part,))


def _is_smaller(bitmap: Part, density: float, part: Part) -> bool:
    """Whether bitmaps take less, if this share of the weights is not zero."""
    return bool(bitmap.lengths(density).sum() < part.lengths().sum())
