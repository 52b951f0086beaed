"""Layers whose neurons fire as planted."""

from __future__ import annotations

import numpy as np

from flashllm.convert.activity import LayerActivity
from flashllm.convert.predictor_fit import Sample


def linear_layer(
    tokens: int = 1200,
    hidden: int = 64,
    neurons: int = 192,
    active: float = 0.1,
    inner: int | None = None,
    seed: int = 0,
) -> Sample:
    """Neurons that fire where a random row's product is large: a share `active` of the tokens.

    inner: the rank of the inputs. A tenth of the tokens is held out.
    """
    rng = np.random.default_rng(seed)
    inner = inner or hidden
    mixing = rng.standard_normal((inner, hidden)) / np.sqrt(inner)
    x = (rng.standard_normal((tokens, inner)) @ mixing + 0.5).astype(np.float16)
    rows = rng.standard_normal((neurons, hidden)).astype(np.float32) / np.float32(np.sqrt(hidden))
    sums = x.astype(np.float32) @ rows.T
    bias = -np.quantile(sums, 1 - active, axis=0).astype(np.float32)
    fired = np.packbits(sums + bias > 0, axis=1)
    cut = tokens * 9 // 10
    return Sample(
        LayerActivity(x, fired, neurons), rows, bias, np.arange(cut), np.arange(cut, tokens)
    )


def clusters(tokens: int, groups: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Neurons that fire in groups: bool [tokens, groups * size], and the group of each neuron.

    A token fires every tenth group; a neuron joins its group nine times of ten. The neurons of all
    groups are mixed. One neuron in fifty fires always.
    """
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(groups), size))
    fired = (rng.random((tokens, groups)) < 0.1)[:, group] & (
        rng.random((tokens, len(group))) < 0.9
    )
    fired[:, ::50] = True
    return fired, group
