"""Which flash dtype each matrix of a checkpoint gets, before any weight is read."""

from __future__ import annotations

import functools

from flashllm.convert.gguf_blocks import kept_dtype, wider
from flashllm.convert.source import Source


def matrix_dtypes(source: Source, wanted: str, codec: str) -> dict[str, str]:
    """The flash dtype of every matrix, by role.

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
    for i in range(source.config.n_layers):
        gate, up, down = (f"layers.{i}.ffn_{name}" for name in ("gate", "up", "down"))
        if gate in dtypes:
            dtypes[gate] = dtypes[up] = wider(dtypes[gate], dtypes[up])
        if codec == "row":
            dtypes[down] = dtypes[up]
    return dtypes


def _kept(source: Source, role: str) -> str:
    tensors = [rows.tensor for rows in source.places[role]]
    kept = [kept_dtype(tensor.dtype, f"{source.path}: {tensor.name}") for tensor in tensors]
    return functools.reduce(wider, kept)
