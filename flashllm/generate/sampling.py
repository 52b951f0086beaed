"""Choosing the next token from logits: numpy only, exact, reproducible from a seed."""

from __future__ import annotations

import collections
import dataclasses
import math
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from flashllm.errors import EngineError, InvalidInput

Logits = npt.NDArray[np.float32]

# llama.cpp looks back 64 tokens; a small model was seen to loop with a period of 70.
PENALTY_WINDOW = 256
"""Tokens that the repeat penalty looks back on, as llama.cpp's --repeat-last-n."""

_MAX_STOPS = 64
_MAX_STOP_LENGTH = 1024


class SamplingOptions(TypedDict, total=False):
    """Keyword arguments that make a SamplingParams."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int | None
    max_tokens: int | None
    stop: str | tuple[str, ...] | list[str]


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens, and when to stop. Names and defaults are llama.cpp's.

    temperature: 0 always takes the most likely token. top_k: keep the k most likely (0: all).
    top_p: keep the most likely that together have this probability. min_p: keep those at least
    this share of the most likely. repeat_penalty: over 1 discourages the last 256 tokens.
    seed: the same seed gives the same choices; None draws one. max_tokens: None means until the
    model ends its reply or the context is full. stop: texts that end the reply, left out of it.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, 100.0)
        _check("top_k", self.top_k, 0, 1 << 31)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100.0)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 64) - 1)
        if self.max_tokens is not None:
            _check("max_tokens", self.max_tokens, 1, 1 << 31)
        for name in ("top_k", "seed", "max_tokens"):
            if isinstance(getattr(self, name), float):
                raise InvalidInput(f"{name} is {getattr(self, name)!r}, expected a whole number")
        object.__setattr__(self, "stop", _stops(self.stop))

    def with_options(self, options: SamplingOptions) -> SamplingParams:
        """These settings with some replaced. Raises InvalidInput for names or values unknown."""
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(set(options) - known):
            raise InvalidInput(f"unknown sampling option {unknown[0]!r}; known: {sorted(known)}")
        return dataclasses.replace(self, **options)  # type: ignore[arg-type]


def _check(name: str, value: object, low: float, high: float) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and value is not True
    if not number or isinstance(value, bool) or not low <= value <= high:  # type: ignore[operator]
        raise InvalidInput(f"{name} is {value!r}, expected {low} to {high}")


def _stops(stop: object) -> tuple[str, ...]:
    texts = (stop,) if isinstance(stop, str) else stop
    if not isinstance(texts, (tuple, list)) or len(texts) > _MAX_STOPS:
        raise InvalidInput(f"stop takes a text, or a list of at most {_MAX_STOPS} of them")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= _MAX_STOP_LENGTH:
            raise InvalidInput(f"a stop text has 1 to {_MAX_STOP_LENGTH} characters")
    return tuple(texts)


class Sampler:
    """Chooses tokens one after another.

    params: how. history: the tokens before, for the repeat penalty. seed: the seed in use.
    As in llama.cpp the repeat penalty comes first, then top-k, top-p and min-p on the untempered
    probabilities, then temperature.
    """

    def __init__(self, params: SamplingParams, history: Iterable[int] = ()) -> None:
        self.seed = secrets.randbits(32) if params.seed is None else params.seed
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(self.seed))
        self._recent = collections.deque(history, maxlen=PENALTY_WINDOW)

    def sample(self, logits: Logits) -> int:
        """The next token, given logits float32 [vocab], which are left as they are.

        Ties go to the lowest id. Raises EngineError if the logits are not numbers.
        """
        logits = self._penalised(logits, self._recent)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):  # argmax finds a NaN if there is one
            raise EngineError(
                f"the model produced {logits[best]} instead of numbers; check its files with "
                "`flashllm verify`, or convert it again with --dtype f32"
            )
        token = best if self._params.temperature == 0 else self._draw(logits, best)
        self._recent.append(token)
        return token

    def likeliest(self, logits: Logits, after: Sequence[int] = ()) -> int:
        """The token that is likeliest once `after` has been chosen, which it has not yet."""
        tokens = [*self._recent, *after][-PENALTY_WINDOW:]
        return int(self._penalised(logits, tokens).argmax())

    def _penalised(self, logits: Logits, tokens: Collection[int]) -> Logits:
        """llama.cpp's penalty: recent tokens' positive logits divided, negative ones multiplied."""
        if self._params.repeat_penalty == 1.0 or not tokens:
            return logits
        recent = np.fromiter(set(tokens), dtype=np.intp)
        out = logits.copy()
        seen, penalty = out[recent], np.float32(self._params.repeat_penalty)
        out[recent] = np.where(seen > 0, seen / penalty, seen * penalty)
        return out

    def _draw(self, logits: Logits, best: int) -> int:
        params = self._params
        ids = _largest(logits, params.top_k) if 0 < params.top_k < logits.size else None
        kept = logits if ids is None else logits[ids]
        weights = np.exp(kept - logits[best])
        keep = weights >= np.float32(params.min_p)
        if params.top_p < 1.0:
            in_nucleus = np.zeros_like(keep)
            in_nucleus[_largest(kept, _nucleus_size(weights, params.top_p))] = True
            keep &= in_nucleus
        ids = np.flatnonzero(keep) if ids is None else ids[keep]
        shares = (logits[ids].astype(np.float64) - float(logits[best])) / params.temperature
        cumulative = np.cumsum(np.exp(shares))
        point = self._random.random() * cumulative[-1]
        return int(ids[min(int(cumulative.searchsorted(point, side="right")), ids.size - 1)])


def _largest(values: Logits, k: int) -> npt.NDArray[np.intp]:
    """Indices of the k >= 1 largest values, ascending; ties at the border go to low indices."""
    if k >= values.size:
        return np.arange(values.size)
    border = np.partition(values, values.size - k)[values.size - k]
    above = np.flatnonzero(values > border)
    level = np.flatnonzero(values == border)[: k - above.size]
    return np.sort(np.concatenate([above, level]))


def _nucleus_size(weights: Logits, p: float) -> int:
    """How many of the largest unnormalised `weights` it takes to make up `p` of their sum."""
    total = float(weights.sum(dtype=np.float64))
    # Weights under (1 - p) / n of the total sum to less than 1 - p, so that the nucleus never
    # needs them, and usually only hundreds are left to sort.
    large = np.sort(weights[weights >= (1.0 - p) * total / weights.size])[::-1]
    return max(1, int(np.cumsum(large, dtype=np.float64).searchsorted(p * total)) + 1)
