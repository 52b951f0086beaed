"""What a model's feed-forwards imply for its memory, from the parts that its units hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flashllm.flash.parts import FFNPart, Part
from flashllm.kernels.weights import row_part_bytes
from flashllm.model.config import ModelConfig
from flashllm.model.memory import sparse_bytes


def neurons_per_unit(parts: Mapping[str, Sequence[Part]]) -> dict[str, int]:
    """Neurons in a unit of each feed-forward, by the name of its group; parts: of all groups."""
    return {
        name: part.neurons_per_unit
        for name, group in parts.items()
        for part in group
        if isinstance(part, FFNPart)
    }


def extra_bytes(parts: Iterable[Part], config: ModelConfig, sparse: str | None) -> int:
    """Memory that a model of codec `row` takes besides what any model does, run this way."""
    every = list(parts)
    ffns = [part for part in every if isinstance(part, FFNPart)]
    if any(part.codec != "row" for part in ffns):
        return 0
    gates = sum(part.neurons * row_part_bytes(part.up_dtype, part.width) for part in ffns)
    return sparse_bytes(config, sum(part.units for part in every), gates, sparse)
