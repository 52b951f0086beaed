"""What running sparse needs of memory and disk, from how neurons fire: arithmetic only."""

from __future__ import annotations

import bisect
import dataclasses
import statistics
from typing import Any

from flashllm.cache.policy import Residency
from flashllm.cache.read_cost import DEFAULT_GAP, READERS

GATED_ROWS, PLAIN_ROWS = 3, 2
"""Rows of a neuron, of which one says whether it fires: gate, up and down, or up and down."""


@dataclasses.dataclass(frozen=True)
class Firing:
    """How a model is to run sparse, and what is known of its neurons.

    mode: "predictor", "oracle" or "gate". window: most tokens whose neurons stay, None for no
    limit. neurons_per_unit: the most that one read brings. rows: of a neuron. figures: what the
    manifest says of its sparsity, None if it was not calibrated.
    """

    mode: str
    window: int | None
    neurons_per_unit: int
    rows: int
    figures: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class SparsePlan:
    """How a model will run sparse.

    mode: which neurons are computed: "predictor", "oracle" or "gate". In bytes: ffn_bytes, all
    neurons; window_bytes, room for those used of late, 0 if all stay; unit_bytes, of a read of one
    unit; gap_bytes, what is rather read in vain than two reads made. readers: reads at once.

    Of a token, None of a model that was not calibrated: window_tokens, whose neurons are in memory
    with the present one's; active, the share of neurons computed; new_bytes, neurons to be read.
    Of the calibration: ranks, least and most; recall, the share of firing neurons that predictors
    find; false_positives, the share of silent ones that they take for firing; order, how neurons
    lie on disk.

    Shares are those of the calibration's text, means over layers; what is new and what stays is of
    predicted neurons, so that exact modes read less. A unit of several neurons is taken to be read
    as if these fired independently; what is read in vain between is not counted.
    """

    mode: str
    ffn_bytes: int
    window_bytes: int
    unit_bytes: int
    gap_bytes: int
    readers: int
    window_tokens: int | None
    active: float | None
    new_bytes: int | None
    compute_bytes: int
    ranks: tuple[int, int] | None
    recall: float | None
    false_positives: float | None
    order: str | None

    @property
    def is_lossy(self) -> bool:
        """Whether results differ from those of all neurons."""
        return self.mode == "predictor"


def sparse_plan(firing: Firing, residency: Residency) -> SparsePlan:
    """The plan of running like this, with what stays in memory."""
    scan, figures = residency.scan, firing.figures
    ffn = sum(scan.rare_groups.values())
    made = SparsePlan(
        mode=firing.mode,
        ffn_bytes=ffn,
        window_bytes=residency.window_bytes,
        unit_bytes=max(span.largest for stage in scan.rare for span in scan.stages[stage]),
        gap_bytes=DEFAULT_GAP,
        readers=READERS,
        window_tokens=None,
        active=None,
        new_bytes=None if residency.window_bytes else 0,
        compute_bytes=ffn,
        ranks=None,
        recall=None,
        false_positives=None,
        order=None,
    )
    if figures is None:
        return made
    layers = figures["layers"]
    is_predicted = firing.mode == "predictor"
    active = statistics.fmean(layer["predicted" if is_predicted else "active"] for layer in layers)
    # Rows that tell which neurons fire are computed for all of them.
    known_by = 0 if is_predicted else ffn // firing.rows
    ranks = [layer["rank"] for layer in layers]
    has_predictors = is_predicted and min(ranks) > 0
    made = dataclasses.replace(
        made,
        active=active,
        compute_bytes=known_by + int(active * ffn),
        ranks=(min(ranks), max(ranks)) if has_predictors else None,
        recall=statistics.fmean(layer["recall"] for layer in layers) if has_predictors else None,
        false_positives=(
            statistics.fmean(layer["false_positives"] for layer in layers)
            if has_predictors
            else None
        ),
        order=figures["order"],
    )
    if not residency.window_bytes:
        return made
    kept = fitting_window(figures["resident"], ffn, residency.window_bytes, firing)
    new = unit_share(figures["window"][kept], firing.neurons_per_unit)
    return dataclasses.replace(made, window_tokens=kept, new_bytes=int(new * ffn))


def fitting_window(resident: list[float], ffn: int, room: int, firing: Firing) -> int:
    """How many tokens' neurons stay besides those of the present one, at least 0.

    resident[k]: the share of all `ffn` bytes of neurons that the last k + 1 tokens use together;
    no more tokens than there are shares, nor than the window asked for.
    """
    shares = [unit_share(share, firing.neurons_per_unit) * ffn for share in resident]
    fits = max(0, bisect.bisect_right(shares, room) - 1)
    return fits if firing.window is None else min(fits, firing.window)


def unit_share(share: float, neurons: int) -> float:
    """The share of units of so many neurons that hold one of a share of the neurons.

    As if they fired independently: those that lie near each other because they fire together need
    fewer units.
    """
    return float(1 - (1 - share) ** neurons)
