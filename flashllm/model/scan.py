"""How a model's units are used for a token: layer after layer, then the head, piece by piece."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from flashllm.cache.policy import Scan, Span, Stage
from flashllm.model.config import ModelConfig

HEAD_PIECE = 8 << 20
"""A head is used in pieces of at least so many bytes: of one layer, if layers are larger.

Whole, the head of a model with a large vocabulary would need more memory than anything else. Each
piece costs a token about 10 us, so those of small models must not be as small as their layers.
"""


FFN_PIECE = 32 << 20
"""A feed-forward is used in pieces of about so many bytes; a layer that is no larger, whole, but
for codec `row`, of which a step may use single neurons.

Its units follow one another, so that it needs no more memory at once, and its sums are the same
however it is cut. In memory, a 7B in q4 took 4 % longer with pieces of 16 MiB than with none, 1 %
with 32 or 64.
"""


@dataclasses.dataclass(frozen=True)
class LayerStages:
    """The stages of a layer: its attention, and the pieces of its feed-forward in their order.

    A small layer is one stage, which `ffn` names as well.
    """

    attention: int
    ffn: tuple[int, ...]


def scan_of(
    config: ModelConfig,
    offsets: Mapping[str, Sequence[int]],
    codec: str = "tile",
    *,
    sparse: str | None = None,
) -> Scan:
    """The scan of a model; offsets[group][i] is where unit i begins in the group's bytes.

    First come the stages of the layers, as layer_stages lists them, then the pieces of the head.
    With `sparse` the feed-forwards are rare, and with "predictor" predictors are part of the
    attention's stages.
    """
    stages: list[Stage] = []
    rare: list[int] = []
    for i in range(config.n_layers):
        attention, ffn = (_span(offsets, f"layers.{i}.{half}") for half in ("attn", "ffn"))
        if codec != "row" and attention.nbytes + ffn.nbytes <= FFN_PIECE:
            stages.append((attention, ffn))
            continue
        predictor = [_span(offsets, predictor_group(i))] if sparse == "predictor" else []
        stages.append((attention, *predictor))
        pieces = _pieces(ffn, FFN_PIECE)
        if sparse:
            rare += range(len(stages), len(stages) + len(pieces))
        stages += pieces
    largest = max(sum(span.nbytes for span in stage) for stage in stages)
    head = _span(offsets, "embed" if config.tied_head else "output")
    names = ("embed", "positions") if config.learned_positions else ("embed",)
    return Scan(
        stages=(*stages, *_pieces(head, max(largest, HEAD_PIECE))),
        tables=tuple(_span(offsets, name) for name in names),
        rare=frozenset(rare),
    )


def layer_stages(scan: Scan, n_layers: int) -> list[LayerStages]:
    """The stages of each layer, and so where the head's begin: after the last of them."""
    found: list[LayerStages] = []
    stage = 0
    for i in range(n_layers):
        attention, group = stage, f"layers.{i}.ffn"
        if scan.stages[stage][-1].group == group:
            found.append(LayerStages(attention, (stage,)))
            stage += 1
            continue
        stage += 1
        first = stage
        while stage < len(scan.stages) and scan.stages[stage][0].group == group:
            stage += 1
        found.append(LayerStages(attention, tuple(range(first, stage))))
    return found


def neurons_at_once(scan: Scan, neurons_per_unit: Mapping[str, int]) -> int:
    """The most neurons, those that only fill a unit included, of any stage.

    neurons_per_unit: of each feed-forward, by its group.
    """
    per_unit = neurons_per_unit
    return max(span.units * per_unit[span.group] for span in scan.spans if span.group in per_unit)


def predictor_group(layer: int) -> str:
    """The group of a layer's predictor."""
    return f"layers.{layer}.predictor"


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
