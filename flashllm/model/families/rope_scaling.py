"""How rotary positions are stretched to contexts longer than those of training.

Pure formulas. Every scheme divides the turn of pair i, whose wavelength is 2 pi theta^(2i / dims)
tokens, by some number, and may multiply cosines and sines by one magnitude. All are computed in
float64. Errors of arithmetic (ValueError, ArithmeticError) come from parameters without meaning.
"""

from __future__ import annotations

import math


def llama3(
    theta: float, dims: int, factor: float, low: float, high: float, original: float
) -> tuple[float, ...]:
    """Divisors of Llama 3.1: short waves stay, long ones divide by factor, between them a ramp.

    A wave is short if it fits `high` times into the `original` context, long if it fits less than
    `low` times (github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling).
    """
    divisors = []
    for fits in (original / wavelength for wavelength in _wavelengths(theta, dims)):
        if fits > high:
            divisors.append(1.0)
        elif fits < low:
            divisors.append(factor)
        else:
            ramp = (fits - low) / (high - low)
            divisors.append(1 / ((1 - ramp) / factor + ramp))
    return tuple(divisors)


def yarn(
    theta: float,
    dims: int,
    factor: float,
    original: float,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    strength: float = 1.0,
) -> tuple[float, ...]:
    """Divisors of YaRN (Peng et al., 2023, arXiv:2309.00071, section 3.2, "NTK-by-parts").

    Pairs that turn more than beta_fast times in the `original` context stay, those that turn less
    than beta_slow times divide by factor, the others blend, linearly in the pair's number, from
    bounds rounded outwards if truncate. strength: how much of the blend is applied (llama.cpp's
    yarn_ext_factor).
    """

    def pair(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(beta_fast), pair(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dims - 1)
    width = last - first or 0.001
    stay = (strength * (1 - min(max((i - first) / width, 0), 1)) for i in range(dims // 2))
    return tuple(1 / ((1 - share) / factor + share) for share in stay)


def yarn_magnitude(factor: float, mscale: float = 0.0, mscale_all_dim: float = 0.0) -> float:
    """YaRN's magnitude, 0.1 ln(factor) + 1 (section 3.4), in DeepSeek's form if both are given."""
    if mscale and mscale_all_dim:
        return _temperature(factor, mscale) / _temperature(factor, mscale_all_dim)
    return _temperature(factor, 1.0)


def longrope_magnitude(factor: float, original: float) -> float:
    """LongRoPE's magnitude (Ding et al., 2024, arXiv:2402.13753; Phi-3's modelling code)."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _temperature(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _wavelengths(theta: float, dims: int) -> list[float]:
    return [2 * math.pi * theta ** (2 * i / dims) for i in range(dims // 2)]
