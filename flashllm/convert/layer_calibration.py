"""One layer's calibration: its predictor, the order of its neurons, and what both are worth."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.calibration_scratch import Arrays
from flashllm.convert.neuron_order import Reads, coactivation_order, reads
from flashllm.convert.neuron_window import WindowCurve, window_curve
from flashllm.convert.predictor import RANK_STEP, Predictor, Quality
from flashllm.convert.predictor_fit import Sample, Tick, fit
from flashllm.errors import InvalidInput
from flashllm.flash.layout import ceil_div
from flashllm.flash.parts import FFNPart

LARGEST_RANK = 1024
"""The largest rank tried by itself, the paper's largest but for one model's last layers."""

WINDOW = 4
"""Tokens whose neurons are taken to stay, when ranks and orders are compared."""

GAP = 3
"""Units that are rather read in vain than a read begun anew, when orders are compared."""

ORDER_TOKENS = 4096
"""Tokens that an order is made of."""

FLASH_COST = 16
"""Bytes from memory in the time of one from flash: of 40 and 2.5 GB/s, as measured at first."""

HELD_COST = 3
"""What a byte of a predictor costs a token, in bytes from memory: it is read, and it takes the room
of a neuron which would else stay. Past a window of a few tokens, of each byte so held 1/8 is a byte
of flash saved: 1 + 16 / 8."""

Order = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Aims:
    """What a calibration is to reach. rank None: the cheapest; order: "coactivation" or "none"."""

    recall: float
    rank: int | None
    order: str

    def __post_init__(self) -> None:
        """Raises InvalidInput."""
        if not 0 < self.recall <= 1:
            raise InvalidInput(f"a recall of {self.recall}: choose more than 0 and at most 1")
        if self.order not in ("coactivation", "none"):
            raise InvalidInput(f"order {self.order!r} is unknown; use coactivation or none")
        if self.rank is not None and (self.rank < RANK_STEP or self.rank % RANK_STEP):
            raise InvalidInput(f"a rank of {self.rank}: choose a multiple of {RANK_STEP}")

    def check_rank(self, most: int) -> None:
        """Raises InvalidInput if the rank is more than layers can have."""
        if most < RANK_STEP:
            raise InvalidInput(f"layers of {most} are too small for predictors")
        if self.rank is not None and self.rank > most:
            raise InvalidInput(f"a rank of {self.rank}: this model's layers take {most} at most")


@dataclasses.dataclass(frozen=True, eq=False)
class LayerCalibration:
    """What was found for a layer. predictor knows the neurons in `order`, if that is not None.

    quality is on held-out tokens, as are the reads of a token in the order that the neurons had,
    and in the one that was made, whether it was taken or not.
    """

    predictor: Predictor
    order: Order | None
    quality: Quality
    curve: WindowCurve
    reads_before: Reads
    reads_after: Reads

    def to_json(self) -> dict[str, Any]:
        """The manifest's object for this layer."""
        return {"rank": self.predictor.rank, **dataclasses.asdict(self.quality)}

    def arrays(self) -> Arrays:
        """The arrays, by name."""
        p = self.predictor
        found: Arrays = {"down": p.down, "up": p.up, "bias": p.bias}
        found |= {"new": self.curve.new, "resident": self.curve.resident}
        return found if self.order is None else {**found, "order": self.order}

    def figures(self) -> dict[str, Any]:
        """All else, as JSON."""
        return {
            "quality": dataclasses.asdict(self.quality),
            "before": dataclasses.asdict(self.reads_before),
            "after": dataclasses.asdict(self.reads_after),
        }

    @classmethod
    def from_saved(cls, arrays: Arrays, figures: dict[str, Any]) -> LayerCalibration:
        """What `arrays` and `figures` gave. Raises KeyError or TypeError for anything else."""
        return cls(
            Predictor(arrays["down"], arrays["up"], arrays["bias"]),
            arrays.get("order"),
            Quality(**figures["quality"]),
            WindowCurve(arrays["new"], arrays["resident"]),
            Reads(**figures["before"]),
            Reads(**figures["after"]),
        )


def calibrate_layer(
    sample: Sample, held_runs: list[NDArray[np.int64]], part: FFNPart, aims: Aims, tick: Tick
) -> LayerCalibration:
    """A layer's predictor and order. held_runs: runs of consecutive held-out tokens.

    tick is told the share done, and may raise to stop.
    """
    fired = [sample.activity.firing(run) for run in held_runs]
    predictor, quality = _fitted(sample, window_curve(fired), part, aims, tick)
    predicted = [predictor.fires(sample.activity.inputs(run)) for run in held_runs]
    curve = window_curve(predicted)
    order: Order = np.arange(part.neurons)
    before = after = reads(predicted, order, part.neurons_per_unit, WINDOW, GAP)
    taken = None
    if aims.order == "coactivation":
        step = ceil_div(len(sample.train), ORDER_TOKENS)
        chosen = sample.activity.inputs(sample.train[::step])
        order = coactivation_order(predictor.fires(chosen), _part_of(tick, 0.8, 0.2))
        after = reads(predicted, order, part.neurons_per_unit, WINDOW, GAP)
        unit_bytes = part.neurons_per_unit * part.grain_bytes
        if after.nbytes(unit_bytes) < before.nbytes(unit_bytes):
            taken, predictor = order, predictor.reordered(order)
    tick(1.0)
    return LayerCalibration(predictor, taken, quality, curve, before, after)


def _part_of(tick: Tick, begin: float, length: float) -> Tick:
    """What is told the share done of a part of the work."""
    return lambda share: tick(begin + length * share)


def _fitted(
    sample: Sample, firing: WindowCurve, part: FFNPart, aims: Aims, tick: Tick
) -> tuple[Predictor, Quality]:
    """The predictor of the rank asked for, or of the cheapest."""
    if aims.rank is not None:
        return fit(sample, aims.rank, aims.recall, _part_of(tick, 0.0, 0.8))
    active = max(float(firing.new[0]), 1e-9)
    new_share = float(firing.new[WINDOW]) / active

    def cost(rank: int, quality: Quality) -> float:
        """Of what a token reads more than with a perfect predictor, in bytes from memory."""
        vain = quality.false_positives * (1 - quality.active) * part.neurons * part.grain_bytes
        return HELD_COST * rank * (part.neurons + part.width) + vain * (1 + FLASH_COST * new_share)

    most = min(part.neurons, part.width, LARGEST_RANK)
    ranks = [RANK_STEP << i for i in range(LARGEST_RANK.bit_length()) if RANK_STEP << i <= most]
    best: tuple[Predictor, Quality] | None = None
    for i, rank in enumerate(ranks):
        tick_rank = _part_of(tick, 0.8 * i / len(ranks), 0.8 / len(ranks))
        found = fit(sample, rank, aims.recall, tick_rank)
        if best is not None and cost(rank, found[1]) >= cost(best[0].rank, best[1]):
            break
        best = found
    if best is None:
        raise InvalidInput(f"layers of {most} are too small for predictors")
    return best
