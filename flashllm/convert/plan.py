"""What a GGUF file becomes: its config, the groups to write and the tensor behind each role."""

from __future__ import annotations

import dataclasses

from flashllm.convert.weights import Weights
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.writer import GroupPlan
from flashllm.formats.gguf import GGUFFile
from flashllm.model.config import ModelConfig
from flashllm.model.families import family_of
from flashllm.model.families.base import Family

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_out")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
VECTORS = ("attn_norm", "ffn_norm")


@dataclasses.dataclass(frozen=True)
class Source:
    """An open GGUF file understood: config, and tensor names by role ("layers.0.attn_q")."""

    file: GGUFFile
    config: ModelConfig
    tensors: dict[str, str]

    def vectors(self) -> list[str]:
        """The roles of one-dimensional tensors, in the model's order."""
        return [role for role in self.tensors if role.endswith("_norm")]


def understand(file: GGUFFile) -> Source:
    """Find family, config and every tensor of a GGUF file.

    Raises UnsupportedModel for another architecture or tensors nobody would read; CorruptModel for
    a tensor that is missing or of another shape than the config says.
    """
    architecture = file.header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CorruptModel(f"{file.path}: names no general.architecture; it is not a model")
    family = family_of(architecture)
    has_output = family.gguf_names["output"] in file.header.tensors
    config = family.config_from_gguf(file.header.metadata, has_output)
    tensors = _tensor_names(family, config)
    shapes = _shapes(config)
    for role, tensor in tensors.items():
        shape, expected = file.tensor(tensor).shape, shapes[role.rsplit(".", 1)[-1]]
        if shape != expected:
            raise CorruptModel(f"{file.path}: tensor {tensor!r} is {shape}, expected {expected}")
    if unread := sorted(set(file.header.tensors) - set(tensors.values())):
        raise UnsupportedModel(
            f"{file.path}: tensor {unread[0]!r} is not part of the {family.name} family as this "
            f"version runs it ({len(unread)} such tensors)"
        )
    return Source(file, config, tensors)


def plan_groups(source: Source, weights: Weights, codec: str) -> list[GroupPlan]:
    """The groups of the flash model, in the order they are written and used."""
    plans = [_matrix_group(source, weights, "embed", ("embed",))]
    for i in range(source.config.n_layers):
        prefix = f"layers.{i}."
        plans.append(_matrix_group(source, weights, f"{prefix}attn", ATTENTION, prefix))
        part = _ffn_part(source, weights, prefix, codec)
        plans.append(GroupPlan(f"{prefix}ffn", (part,)))
    if not source.config.tied_head:
        plans.append(_matrix_group(source, weights, "output", ("output",)))
    return plans


def _matrix_group(
    source: Source, weights: Weights, name: str, roles: tuple[str, ...], prefix: str = ""
) -> GroupPlan:
    parts: list[Part] = []
    first = 0
    for role in roles:
        tensor = source.tensors[prefix + role]
        rows, cols = source.file.tensor(tensor).shape
        parts.append(MatrixPart.plan(role, weights.dtype(tensor), rows, cols, first))
        first += parts[-1].units
    return GroupPlan(name, tuple(parts))


def _ffn_part(source: Source, weights: Weights, prefix: str, codec: str) -> FFNPart:
    gate, up, down = (weights.dtype(source.tensors[prefix + role]) for role in FEED_FORWARD)
    if gate != up:
        raise UnsupportedModel(
            f"{source.file.path}: {prefix}ffn has a gate of {gate} and up of {up}; "
            "convert with --dtype q8 or q4, which makes them equal"
        )
    if codec == "row":  # a neuron's record has one dtype: its kernel reads one stream
        down = gate
    config = source.config
    return FFNPart.plan("ffn", codec, (gate, up, down), config.ffn_size, config.hidden_size, 0)


def _tensor_names(family: Family, config: ModelConfig) -> dict[str, str]:
    names = {"embed": family.gguf_names["embed"]}
    for i in range(config.n_layers):
        for role, name in family.gguf_layer_names.items():
            names[f"layers.{i}.{role}"] = name.format(i=i)
    names["output_norm"] = family.gguf_names["output_norm"]
    if not config.tied_head:
        names["output"] = family.gguf_names["output"]
    return names


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every role: (rows, cols) or (size,)."""
    hidden, ffn = config.hidden_size, config.ffn_size
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "embed": (config.vocab_size, hidden),
        "output": (config.vocab_size, hidden),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_out": (hidden, queries),
        "ffn_gate": (ffn, hidden),
        "ffn_up": (ffn, hidden),
        "ffn_down": (hidden, ffn),
        "attn_norm": (hidden,),
        "ffn_norm": (hidden,),
        "output_norm": (hidden,),
    }
