"""Which neurons fire together, by how far apart they are stored: measured on one model, planted in
another.

Neuron n fires where a standard normal of its own, z[n], exceeds a threshold; neighbours' normals
are correlated. A measured curve P(neuron n + j fires | n fires) gives the correlation at every lag
j, and a mixture of first-order autoregressions along the neurons gives normals that have it, at
whatever share of neurons fires.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LAGS = 64
LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0, 4096.0)
"""Neurons after which the correlation of each autoregression has fallen to 1 / e."""
STEPS = 20_000
"""Of the fit, 0.3 s."""
FAR = 0.1
"""A correlation that misses a measured curve by more is no plant of it."""


class BadCurve(ValueError):
    """A file that holds no curve of co-activation."""


@dataclasses.dataclass(frozen=True)
class Coactivation:
    """lag[j - 1]: P(neuron n + j fires | n fires), j = 1 .. LAGS; active: share that fires."""

    lag: tuple[float, ...]
    active: float

    @classmethod
    def read(cls, file: Path) -> Coactivation:
        """What measure_coactivation.py wrote. Raises BadCurve, OSError."""
        try:
            data = json.loads(file.read_bytes())
            found = cls(tuple(map(float, data["lag"])), float(data["active"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BadCurve(f"{file}: holds no curve of co-activation: {error}") from None
        shares = (*found.lag, found.active)
        if len(found.lag) != LAGS or not all(0 < share < 1 for share in shares):
            raise BadCurve(f"{file}: expected {LAGS} shares between 0 and 1, and active as one")
        return found

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        file.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def correlations(self) -> Floats:
        """The correlation of the normals at each lag, at least 0: float64 [LAGS]."""
        grid = np.concatenate([np.linspace(0, 0.95, 96), np.linspace(0.955, 0.999, 23)])
        return np.interp(self.lag, _together(grid, self.active), grid)

    def at(self, active: float) -> Floats:
        """The curve of the same correlations where another share fires: float64 [LAGS]."""
        return _together(self.correlations(), active)


def mean(layers: Sequence[Coactivation]) -> Coactivation:
    """As active as layers are, and as correlated, in the mean."""
    active = float(np.mean([layer.active for layer in layers]))
    correlations = np.mean([layer.correlations() for layer in layers], axis=0)
    return Coactivation(tuple(_together(correlations, active).tolist()), active)


def measured(fired: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Of bool [tokens, neurons]: how often n and n + j fired, and n with an n + j: both [LAGS]."""
    pairs = np.zeros((2, LAGS))
    for j in range(1, min(LAGS, fired.shape[1] - 1) + 1):
        before = fired[:, :-j]
        pairs[:, j - 1] = np.count_nonzero(before & fired[:, j:]), np.count_nonzero(before)
    return pairs[0], pairs[1]


def fit(correlations: Floats) -> Floats:
    """Shares of the autoregressions of LENGTHS whose mixture comes nearest: float64 [lengths].

    At least 0 and together at most 1; least squares by projected gradients with Nesterov's
    momentum (Beck and Teboulle, 2009). Raises BadCurve if the nearest is not near.
    """
    basis = np.exp(-np.arange(1, LAGS + 1)[:, None] / np.array(LENGTHS))
    gram, target = basis.T @ basis, basis.T @ correlations
    step = 1 / np.linalg.eigvalsh(gram)[-1]
    shares = ahead = np.zeros(len(LENGTHS))
    for i in range(STEPS):
        before, shares = shares, _projected(ahead - step * (gram @ ahead - target))
        ahead = shares + i / (i + 3) * (shares - before)
    far = float(np.abs(basis @ shares - correlations).max())
    if far > FAR:
        raise BadCurve(f"no mixture comes nearer to the curve's correlations than {far:.2f}")
    return shares


def _projected(shares: Floats) -> Floats:
    """The nearest shares that are at least 0 and together at most 1."""
    positive: Floats = np.maximum(shares, 0)
    if positive.sum() <= 1:
        return positive
    descending = np.sort(shares)[::-1]
    excess = (descending.cumsum() - 1) / np.arange(1, len(shares) + 1)
    return np.maximum(shares - excess[descending > excess][-1], 0)


def normals(
    neurons: int, width: int, shares: Floats | None, rng: np.random.Generator
) -> NDArray[np.float32]:
    """`width` standard normals for each neuron, correlated along the neurons as `shares` says.

    None: independent. float32 [neurons, width].
    """
    rest = rng.standard_normal((neurons, width), dtype=np.float32)
    if shares is None:
        return rest
    decay = np.exp(-1 / np.array(LENGTHS, np.float32))[:, None]
    fresh = np.sqrt(1 - decay * decay)
    gains = np.sqrt(shares).astype(np.float32)
    state = rng.standard_normal((len(shares), width), dtype=np.float32)
    out = rest * np.float32(math.sqrt(max(0.0, 1 - shares.sum())))
    for n in range(neurons):
        out[n] += gains @ state
        state = decay * state + fresh * rng.standard_normal(state.shape, dtype=np.float32)
    return out


def _together(correlations: Floats, active: float) -> Floats:
    """P(z2 > t | z1 > t) of two normals so correlated, where P(z > t) = active: as large.

    The integral over z1 of its density times P(z2 > t | z1), in steps of equal probability.
    """
    normal = statistics.NormalDist()
    threshold = normal.inv_cdf(1 - active)
    steps = (np.arange(1000) + 0.5) / 1000
    z = np.array([normal.inv_cdf(1 - active * step) for step in steps])
    r = np.minimum(correlations, 0.9999)[:, None]
    beyond = (threshold - r * z) / np.sqrt(1 - r * r)
    erfc = np.vectorize(math.erfc)
    return 0.5 * erfc(beyond / math.sqrt(2)).mean(1)
