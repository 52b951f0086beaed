"""Write a sparse model in the shape of a known one, its statistics of activations planted.

    python tools/make_sparse.py opt-6.7b DIR                   13 GB of float16, predictors included
    python tools/make_sparse.py opt-6.7b DIR --layers 4 --dtype q4
    python tools/make_sparse.py opt-6.7b DIR --coactivation FILE.json
    python tools/make_sparse.py opt-6.7b --check                only the statistics, no model

A flash model of codec row. It has learnt nothing: its weights are made so that running it, with
ordinary attention and predictors, shows the wanted share of silent neurons, misses and false
positives of the predictors, and reuse of neurons from token to token. The defaults are the figures
of "LLM in a flash" (arXiv 2312.11514) for each shape; reuse shows where token ids that follow each
other are fed: s, s + 1, s + 2, ... FILE.json, which measure_coactivation.py writes, also plants
which neurons fire together along the order in which they are stored; without it they fire
independently.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sparse_coactivation import LAGS, BadCurve, Coactivation, fit, measured
from sparse_flash import sparsity, write_sparse
from sparse_planting import RESERVED, PlantedLayer, Statistics
from sparse_weights import Plan, Planting
from synthetic_shapes import MODELS, Model

from flashllm.errors import FlashError

CHECKED_LAYERS = 2
COUNTED = 64
"""Tokens of each layer that co-activation is shown of."""
MISSES, FALSE_POSITIVES = 0.05, 0.07


@dataclasses.dataclass(frozen=True)
class Known:
    """What the paper says of a family: its activation, how sparse it is and its predictors' ranks.

    ranks: of most layers, and of one layer in eight, which are the last or those in the middle.
    reuse and hot were searched for: of OPT, 24 % of neurons in the union of 5 tokens and 2.4 % new
    ones for a token after 4; of Falcon, 3.1 % new ones (its 33 % cannot be had with them: the union
    is 30 %). Of Llama 2 the paper gives neither.
    """

    activation: str
    silent: float
    reuse: float
    hot: float
    ranks: tuple[int, int]
    in_the_middle: bool = False


KNOWN = {
    "opt": Known("activation_function", 0.97, 0.1, 0.88, (128, 1024)),
    "falcon": Known("activation", 0.95, 0.1, 0.8, (256, 1152)),
    "llama": Known("hidden_act", 0.90, 0.1, 0.88, (256, 1024), in_the_middle=True),
}
PAPER = {"opt-6.7b": (0.10, 0.24, 0.024), "falcon-7b": (0.116, 0.33, 0.031)}
"""Neurons predicted for a token, in the union of 5 tokens, and new after 4."""


def main() -> None:
    """Write the model asked for, or only show its statistics."""
    options = parsed()
    try:
        curve = Coactivation.read(Path(options.coactivation)) if options.coactivation else None
        plan = planned(options, None if curve is None else fit(curve.correlations()))
        planting = Planting(plan)
        if options.check:
            for i in range(len(plan.ranks)):
                planting.plant(i)
        else:
            write(options.target, planting)
        layers = [planting.layer(i) for i in range(len(plan.ranks))]
    except (BadCurve, FlashError, OSError) as error:
        sys.exit(f"make_sparse.py: {error}")
    for line in report(options.model, plan, layers, curve):
        print(line)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=[n for n, m in MODELS.items() if kind_of(m) in KNOWN])
    parser.add_argument("target", type=Path, nargs="?", help="a new folder")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has, or more")
    parser.add_argument("--dtype", choices=("f16", "q8", "q4"), default="f16")
    parser.add_argument("--silent", type=float, help="share of neurons that do not fire")
    parser.add_argument("--misses", type=float, default=MISSES, help="of those that fire")
    parser.add_argument(
        "--false-positives", type=float, default=FALSE_POSITIVES, help="of the silent"
    )
    parser.add_argument("--reuse", type=float, help="correlation of what tokens in a row fire")
    parser.add_argument("--hot", type=float, help="share of a neuron's drive that is its own rate")
    parser.add_argument("--coactivation", default="", metavar="FILE.json")
    parser.add_argument("--check", action="store_true", help="plant a few layers, write nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.coactivation == "independent":
        options.coactivation = ""
    if complaint := wrong(options):
        parser.error(complaint)
    return options


def wrong(options: argparse.Namespace) -> str | None:
    """What cannot be had of these options, if something cannot."""
    if (options.target is None) != options.check:
        return "give a folder, or --check to write nothing"
    if options.target is not None and options.target.exists():
        return f"{options.target}: exists already; choose another place"
    if options.layers is not None and options.layers < 1:
        return "--layers: a model has at least one"
    for name in ("silent", "misses", "false_positives"):
        share = getattr(options, name)
        if share is not None and not 0 < share < 1:
            return f"--{name.replace('_', '-')}: a share lies between 0 and 1"
    for name in ("reuse", "hot"):
        share = getattr(options, name)
        if share is not None and not 0 <= share < 1:
            return f"--{name}: from 0 to less than 1"
    if MODELS[options.model].config["hidden_size"] <= RESERVED:
        return f"{options.model}: too narrow for what is planted"
    return None


def planned(options: argparse.Namespace, shares: np.ndarray | None) -> Plan:
    """What the options ask for; a check takes few layers unless told how many."""
    model = MODELS[options.model]
    known = KNOWN[kind_of(model)]
    layers = options.layers or (CHECKED_LAYERS if options.check else None)
    model = model.with_layers(layers)
    model = dataclasses.replace(model, config={**model.config, known.activation: "relu"})
    wanted = Statistics(
        silent=options.silent or known.silent,
        misses=options.misses,
        false_positives=options.false_positives,
        reuse=known.reuse if options.reuse is None else options.reuse,
        hot=known.hot if options.hot is None else options.hot,
    )
    ranks = predictor_ranks(known, model.config["num_hidden_layers"])
    return Plan(model, options.dtype, wanted, ranks, shares, options.seed)


def kind_of(model: Model) -> str:
    """The model type of a shape."""
    kind: str = model.config["model_type"]
    return kind


def predictor_ranks(known: Known, layers: int) -> tuple[int, ...]:
    """The rank of each layer's predictor; of 32 layers, four have the larger one."""
    usual, large = known.ranks
    count = layers // 8
    first = (layers - count) // 2 if known.in_the_middle else layers - count
    return tuple(large if first <= i < first + count else usual for i in range(layers))


def write(target: Path, planting: Planting) -> None:
    """Write the model, and say how fast."""
    done, start = 0, time.perf_counter()
    for nbytes in write_sparse(target, planting):
        done += nbytes
        if sys.stderr.isatty():
            print(f"{done / 1e9:.1f} GB", end="\r", file=sys.stderr)
    seconds = time.perf_counter() - start
    print(f"{done / 1e9:.2f} GB in {seconds:.0f} s, {done / 1e9 / seconds:.2f} GB/s")


def report(
    name: str, plan: Plan, layers: list[PlantedLayer], curve: Coactivation | None
) -> Iterator[str]:
    """What was planted, in lines."""
    found = sparsity(layers, plan)
    means = {key: np.mean([layer[key] for layer in found["layers"]]) for key in found["layers"][0]}
    yield (
        f"planted, mean of {len(layers)} layers: {means['active']:.2%} of neurons fire, "
        f"{means['predicted']:.2%} are predicted; recall {means['recall']:.2%}, "
        f"false positives {means['false_positives']:.2%}, rank {means['rank']:.0f}"
    )
    if name in PAPER:
        yield (
            "the paper: {:.1%} predicted, {:.1%} in the union of 5 tokens, {:.1%} new "
            "after 4".format(*PAPER[name])
        )
    yield "tokens before    new    in memory"
    for k in (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32):
        yield f"{k:13} {found['window'][k]:6.2%} {found['resident'][k]:9.2%}"
    yield from report_coactivation(layers, curve)


def report_coactivation(layers: list[PlantedLayer], curve: Coactivation | None) -> Iterator[str]:
    """How often neighbours fire together, beside what was wanted."""
    pairs = sum(np.array(measured(layer.figures.fired[:COUNTED])) for layer in layers)
    active = float(np.mean([layer.figures.active for layer in layers]))
    planted = pairs[0] / np.maximum(pairs[1], 1)
    wanted = np.full(LAGS, active) if curve is None else curve.at(active)
    yield "neurons apart    fire together, planted    wanted" + (
        "" if curve is None else "    file"
    )
    for j in (1, 2, 3, 4, 8, 16, 32, 64):
        line = f"{j:13} {planted[j - 1]:25.2%} {wanted[j - 1]:9.2%}"
        yield line if curve is None else f"{line} {curve.lag[j - 1]:7.2%}"


if __name__ == "__main__":
    main()
