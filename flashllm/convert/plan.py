"""The groups of units that a checkpoint becomes."""

from __future__ import annotations

from flashllm.convert.source import Source
from flashllm.convert.weights import Weights
from flashllm.errors import UnsupportedModel
from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.writer import GroupPlan
from flashllm.model.roles import ATTENTION, FEED_FORWARD


def plan_groups(source: Source, weights: Weights, codec: str) -> list[GroupPlan]:
    """The groups of the flash model, in the order they are written and used."""
    config = source.config
    plans = [_matrix_group(source, weights, "embed", ("embed",))]
    if config.learned_positions:
        plans.append(_matrix_group(source, weights, "positions", ("positions",)))
    for i in range(config.n_layers):
        prefix = f"layers.{i}."
        plans.append(_matrix_group(source, weights, f"{prefix}attn", ATTENTION, prefix))
        part = _ffn_part(source, weights, prefix, codec)
        plans.append(GroupPlan(f"{prefix}ffn", (part,)))
    if not config.tied_head:
        plans.append(_matrix_group(source, weights, "output", ("output",)))
    return plans


def _matrix_group(
    source: Source, weights: Weights, name: str, roles: tuple[str, ...], prefix: str = ""
) -> GroupPlan:
    parts: list[Part] = []
    first = 0
    for role in roles:
        rows, cols = source.shapes[prefix + role]
        parts.append(MatrixPart.plan(role, weights.dtype(prefix + role), rows, cols, first))
        first += parts[-1].units
    return GroupPlan(name, tuple(parts))


def _ffn_part(source: Source, weights: Weights, prefix: str, codec: str) -> FFNPart:
    config = source.config
    gate_role, up_role, down_role = (prefix + role for role in FEED_FORWARD)
    gate = weights.dtype(gate_role) if config.ffn.gated else None
    up, down = weights.dtype(up_role), weights.dtype(down_role)
    if gate not in (None, up):
        raise UnsupportedModel(
            f"{source.path}: {prefix}ffn has a gate of {gate} and up of {up}; "
            "convert with --dtype q8 or q4, which makes them equal"
        )
    if codec == "row":  # a neuron's record has one dtype: its kernel reads one stream
        down = up
    return FFNPart.plan("ffn", codec, (gate, up, down), config.ffn.size, config.hidden_size, 0)
