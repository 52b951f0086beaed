"""How a model's units are used for a token: layer after layer, then the head, piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from flashllm.cache.policy import Scan, Span, Stage
from flashllm.model.config import ModelConfig

HEAD_PIECE = 8 << 20
"""A head is used in pieces of at least so many bytes: of one layer, if layers are larger.

Whole, the head of a model with a large vocabulary would need more memory than anything else. Each
piece costs a token about 10 us, so those of small models must not be as small as their layers.
"""


def scan_of(config: ModelConfig, offsets: Mapping[str, Sequence[int]]) -> Scan:
    """The scan of a model; offsets[group][i] is where unit i begins in the group's bytes.

    The first config.n_layers stages are the layers, those after them the pieces of the head.
    """
    layers = [
        tuple(_span(offsets, f"layers.{i}.{half}") for half in ("attn", "ffn"))
        for i in range(config.n_layers)
    ]
    largest = max(sum(span.nbytes for span in layer) for layer in layers)
    head = _span(offsets, "embed" if config.tied_head else "output")
    names = ("embed", "positions") if config.learned_positions else ("embed",)
    return Scan(
        stages=(*layers, *_pieces(head, max(largest, HEAD_PIECE))),
        tables=tuple(_span(offsets, name) for name in names),
    )


def _span(offsets: Mapping[str, Sequence[int]], group: str) -> Span:
    return Span(group, 0, tuple(offsets[group]))


def _pieces(head: Span, nbytes: int) -> list[Stage]:
    """The span in pieces of at most about `nbytes`, each of about as many units."""
    count = min(head.units, -(-head.nbytes // nbytes))
    ends = [head.units * i // count for i in range(count + 1)]
    return [
        (Span(head.group, low, head.offsets[low : high + 1]),)
        for low, high in itertools.pairwise(ends)
    ]
