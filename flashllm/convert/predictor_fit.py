"""Fitting a predictor to a layer's activity: low-rank regression, then class-balanced logistic.

"LLM in a flash" (arXiv 2312.11514, section 3.1 and appendix B) trains its predictors from random
weights. Here the rows that decide are at hand, so a fit starts from the product of that rank which
is nearest to what they compute on the sample: reduced-rank regression (Izenman, 1975).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flashllm.convert.activity import LayerActivity, Tokens
from flashllm.convert.predictor import Predictor, Quality, quality, threshold
from flashllm.flash.layout import ceil_div
from flashllm.flash.quantize import Floats

START_TOKENS = 6144
"""Tokens that the start is fitted to."""

SPARE_COLUMNS, POWER_STEPS = 8, 3
"""Of the randomised search for the leading directions (Halko, Martinsson and Tropp, 2011)."""

EPOCHS, BATCH = 6, 128
PATIENCE = 2
"""Epochs that may pass without fewer false positives on held-out text. On samples of a few thousand
tokens training only learns them by heart: there the start stays the best, measured."""

LEARNING_RATE = 0.005
"""Of Adam, as a share of the root mean square of what it changes; it falls to 0 as a cosine."""

HELD_TOKENS = 2048
"""The most held-out tokens that a threshold is set on: their scores are held at once."""

STEEPNESS = 4.0
"""The spread of the scores that training starts from."""

_BETA1, _BETA2, _TINY = 0.9, 0.99, 1e-8

Tick = Callable[[float], None]
"""Told the share of a fit that is done; may raise to stop."""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A layer's activity with what decides it: rows [neurons, hidden] and bias [neurons].

    train, held: tokens to fit to, and tokens to stop and to set the threshold by; none is in both.
    """

    activity: LayerActivity
    rows: Floats
    bias: Floats
    train: Tokens
    held: Tokens

    @functools.cached_property
    def mean(self) -> Floats:
        """The mean input: float32 [hidden]. Predictors are fitted to what is left without it."""
        step = ceil_div(len(self.train), START_TOKENS)
        found: Floats = self.activity.inputs(self.train[::step]).mean(axis=0)
        return found

    def centred(self, tokens: Tokens) -> Floats:
        """Inputs without the mean: float32 [len(tokens), hidden]."""
        x = self.activity.inputs(tokens)
        x -= self.mean
        return x


def fit(sample: Sample, rank: int, recall: float, tick: Tick) -> tuple[Predictor, Quality]:
    """The predictor of that rank, as it is once stored, and how it does on the held-out tokens.

    Of the firing neurons there, it finds a share of `recall`. rank: a multiple of 32, at most the
    neurons and the hidden size. What `tick` raises is raised.
    """
    held = sample.held[:HELD_TOKENS]
    inputs, fired = sample.activity.inputs(held), sample.activity.firing(held)

    def settle(predictor: Predictor) -> tuple[Predictor, Quality]:
        stored = predictor.stored(sample.mean)
        scores = stored.scores(inputs)
        shifted = stored.shifted(-threshold(scores, fired, recall))
        return shifted, quality(shifted.fires(inputs), fired)

    start = _start(sample, rank)
    found, best = settle(start)
    idle = 0
    for epoch, trained in enumerate(_trained(sample, start)):
        candidate, figures = settle(trained)
        idle += 1
        if figures.false_positives < best.false_positives:
            found, best, idle = candidate, figures, 0
        tick((epoch + 1) / EPOCHS)
        if idle == PATIENCE:
            break
    return found, best


def _start(sample: Sample, rank: int) -> Predictor:
    """The nearest product of that rank to rows @ x + bias over the sample, of a sensible scale.

    It is a predictor of x - mean.
    """
    x = sample.centred(sample.train[:: ceil_div(len(sample.train), START_TOKENS)])
    rows = sample.rows
    rng = np.random.default_rng(rank)
    width = min(rank + SPARE_COLUMNS, *rows.shape)
    basis = rng.standard_normal((len(rows), width), dtype=np.float32)
    for _ in range(POWER_STEPS):
        basis, _ = np.linalg.qr(rows @ (x.T @ (x @ (rows.T @ basis))))
    inner = basis.T @ rows
    seen = x @ inner.T
    variances, directions = np.linalg.eigh(seen.T @ seen / np.float32(len(x)))
    leading = directions[:, ::-1][:, :rank]
    spread = np.sqrt(np.maximum(variances[::-1][:rank], _TINY))
    scale = np.float32(STEEPNESS * np.sqrt(len(rows) / np.square(spread).sum()))
    down = (leading / spread).T @ inner  # its results have variance 1
    up = scale * (basis @ (leading * spread))
    bias = scale * (rows @ sample.mean + sample.bias)
    return Predictor(*(np.ascontiguousarray(part, np.float32) for part in (down, up, bias)))


def _trained(sample: Sample, start: Predictor) -> Iterator[Predictor]:
    """What `start` becomes, epoch after epoch: the same arrays, changed in place."""
    share = sample.activity.active(sample.train)
    if not 0 < share < 1:
        return
    weight = np.float32((1 - share) / share)
    parts = [start.down.copy(), start.up.copy(), start.bias.copy()]
    optimizer = _Adam(parts)
    rng = np.random.default_rng(0)
    steps = -(-len(sample.train) // BATCH)
    for epoch in range(EPOCHS):
        shuffled = rng.permutation(sample.train)
        for step in range(steps):
            done = (epoch + step / steps) / EPOCHS
            rate = LEARNING_RATE * (1 + math.cos(math.pi * done)) / 2
            batch = np.sort(shuffled[step::steps])
            optimizer.step(_gradients(parts, sample, batch, weight), rate)
        yield Predictor(*parts)


def _gradients(
    parts: Sequence[Floats], sample: Sample, batch: Tokens, weight: np.float32
) -> list[Floats]:
    """Of the logistic loss of a batch, where a firing neuron counts `weight` times a silent one."""
    down, up, bias = parts
    x, fired = sample.centred(batch), sample.activity.firing(batch)
    low = x @ down.T
    errors = low @ up.T
    errors += bias
    np.clip(errors, -30, 30, out=errors)
    np.negative(errors, out=errors)
    np.exp(errors, out=errors)
    errors += 1
    np.reciprocal(errors, out=errors)  # the probability of firing
    errors -= fired
    np.multiply(errors, weight, out=errors, where=fired)
    errors /= np.float32(len(batch))
    return [(errors @ up).T @ x, errors.T @ low, errors.sum(axis=0)]


class _Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980), with steps as shares of each array's own size."""

    def __init__(self, parts: Sequence[Floats]):
        self._parts = parts
        self._sizes = [float(np.sqrt(np.mean(np.square(part)))) + _TINY for part in parts]
        self._means = [np.zeros_like(part) for part in parts]
        self._squares = [np.zeros_like(part) for part in parts]
        self._count = 0

    def step(self, gradients: Sequence[Floats], rate: float) -> None:
        """Change the parts, in place, along their gradients."""
        self._count += 1
        sooner, later = 1 - _BETA1**self._count, 1 - _BETA2**self._count
        for part, size, mean, square, gradient in zip(
            self._parts, self._sizes, self._means, self._squares, gradients, strict=True
        ):
            mean += (gradient - mean) * np.float32(1 - _BETA1)
            np.square(gradient, out=gradient)
            square += (gradient - square) * np.float32(1 - _BETA2)
            length = np.sqrt(square / np.float32(later))
            length += np.float32(_TINY * size)
            part -= np.float32(rate * size / sooner) * mean / length
