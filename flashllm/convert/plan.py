"""The groups of units that a checkpoint becomes."""

from __future__ import annotations

from collections.abc import Mapping

from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.units_file import GroupPlan
from flashllm.model.config import ModelConfig
from flashllm.model.roles import ATTENTION, FEED_FORWARD, Shape, roles


def plan_groups(config: ModelConfig, dtypes: Mapping[str, str], codec: str) -> list[GroupPlan]:
    """The groups of the flash model, in the order they are written and used.

    dtypes: the flash dtype of every matrix, by role.
    """
    shapes = roles(config)
    plans = [_matrix_group(shapes, dtypes, "embed", ("embed",))]
    if config.learned_positions:
        plans.append(_matrix_group(shapes, dtypes, "positions", ("positions",)))
    for i in range(config.n_layers):
        prefix = f"layers.{i}."
        plans.append(_matrix_group(shapes, dtypes, f"{prefix}attn", ATTENTION, prefix))
        part = _ffn_part(config, dtypes, prefix, codec)
        plans.append(GroupPlan(f"{prefix}ffn", (part,)))
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
) -> GroupPlan:
    parts: list[Part] = []
    first = 0
    for role in group_roles:
        rows, cols = shapes[prefix + role]
        parts.append(MatrixPart.plan(role, dtypes[prefix + role], rows, cols, first))
        first += parts[-1].units
    return GroupPlan(name, tuple(parts))


def _ffn_part(config: ModelConfig, dtypes: Mapping[str, str], prefix: str, codec: str) -> FFNPart:
    gate_role, up_role, down_role = (prefix + role for role in FEED_FORWARD)
    named = (dtypes.get(gate_role), dtypes[up_role], dtypes[down_role])
    return FFNPart.plan("ffn", codec, named, config.ffn.size, config.hidden_size, first_unit=0)
