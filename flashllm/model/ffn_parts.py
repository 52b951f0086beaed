"""What the parts that a model's units hold imply for its memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from flashllm.flash.parts import FFNPart, Part
from flashllm.kernels.weights import TILE_BYTES, row_part_bytes
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


def extra_bytes(
    parts: Iterable[Part], config: ModelConfig, sparse: str | None, threads: int
) -> int:
    """Memory that a model takes besides what any model does, run this way by so many threads: of
    codec `row` for its neurons, of codec `bitmap` for tiles that are expanded.
    """
    every = list(parts)
    ffns = [part for part in every if isinstance(part, FFNPart)]
    if any(part.codec != "row" for part in ffns):
        return threads * sum(_panels_expanded(every))
    gates = sum(part.neurons * row_part_bytes(part.up_dtype, part.width) for part in ffns)
    return sparse_bytes(config, sum(part.units for part in every), gates, sparse)


def _panels_expanded(parts: Iterable[Part]) -> set[int]:
    """Bytes of the panels of tiles that a thread expands: there is room for one of each size."""
    runs = {run for part in parts if part.codec == "bitmap" for run in part.runs(0)}
    return {run.tiles * TILE_BYTES[run.dtype] for run in runs}
