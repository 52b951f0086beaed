"""Which flash dtype each matrix of a checkpoint gets, before any weight is read."""

from __future__ import annotations

import functools

from flashllm.convert.gguf_blocks import kept_dtype, wider
from flashllm.convert.source import Source
from flashllm.model.config import ModelConfig

HEAD_DTYPE = {"q4": "q8", "q4m": "q8"}
"""What the output matrix (of tied models, the embedding) gets instead of a dtype that is asked for:
it is the one whose errors nothing averages out (docs/measurements.md)."""


def matrix_dtypes(source: Source, wanted: str, codec: str, *, pure: bool = False) -> dict[str, str]:
    """The flash dtype of every matrix, by role.

    Another wanted dtype than "keep" is that of all but the head (HEAD_DTYPE), unless `pure`.
    wanted "keep": the dtype that keeps the tensor's weights, of several tensors the widest; gate
    and up share the wider of theirs, since one kernel reads both. In codec "row" down has it too:
    a neuron's record is one stream. Raises UnsupportedModel for tensors without arithmetic.
    """
    kept = {role: _kept(source, role) for role in source.shapes}  # of vectors too: it checks them
    dtypes = {
        role: kept[role] if wanted == "keep" else wanted
        for role, shape in source.shapes.items()
        if len(shape) == 2
    }
    if not pure and wanted != "keep":
        dtypes[head_role(source.config)] = HEAD_DTYPE.get(wanted, wanted)
    for i in range(source.config.n_layers):
        gate, up, down = (f"layers.{i}.ffn_{name}" for name in ("gate", "up", "down"))
        if gate in dtypes:
            dtypes[gate] = dtypes[up] = wider(dtypes[gate], dtypes[up])
        if codec == "row":
            dtypes[down] = dtypes[up]
    return dtypes


def head_role(config: ModelConfig) -> str:
    """The matrix that makes the logits."""
    return "embed" if config.tied_head else "output"


def _kept(source: Source, role: str) -> str:
    tensors = [rows.tensor for rows in source.places[role]]
    kept = [kept_dtype(tensor.dtype, f"{source.path}: {tensor.name}") for tensor in tensors]
    return functools.reduce(wider, kept)
