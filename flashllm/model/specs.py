"""The parts a model can be made of, as data: norms, attention, positions, feed-forward, blocks."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from flashllm.errors import CorruptModel

RopeStyle = Literal["interleaved", "half"]
Activation = Literal["silu", "gelu", "gelu_erf", "relu", "relu2"]

MAX_WIDTH = 1 << 20
MAX_CONTEXT = 1 << 24


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """A norm over a vector: "rms" (Zhang and Sennrich, 2019) or "layer" (Ba et al., 2016)."""

    kind: Literal["rms", "layer"]
    eps: float
    bias: bool = False

    def __post_init__(self) -> None:
        one_of("norm kind", self.kind, ("rms", "layer"))
        positive("norm eps", self.eps)
        boolean("norm bias", self.bias)


@dataclasses.dataclass(frozen=True)
class QKNorm:
    """A norm of queries and keys before their rotation.

    span: "shared", every head with the same weights; "own", every head with its own; "joint", all
    heads as one vector.
    """

    norm: NormSpec
    span: Literal["shared", "own", "joint"]

    def __post_init__(self) -> None:
        one_of("QK-norm span", self.span, ("shared", "own", "joint"))


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """Attention with `heads` queries on `kv_heads` keys and values (Ainslie et al., 2023).

    scale multiplies q . k; soft_cap c replaces a score s by c tanh(s / c). alibi: a slope per head,
    times the distance in tokens, is taken off the scaled score (Press et al., 2022); empty without.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QKNorm | None = None
    soft_cap: float | None = None
    alibi: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        whole("heads", self.heads, MAX_WIDTH)
        whole("kv_heads", self.kv_heads, MAX_WIDTH)
        whole("head_dim", self.head_dim, 1024)
        positive("attention scale", self.scale)
        boolean("qkv_bias", self.qkv_bias)
        boolean("out_bias", self.out_bias)
        if self.soft_cap is not None:
            positive("attention soft_cap", self.soft_cap)
        if self.heads % self.kv_heads:
            raise CorruptModel(
                f"model config: {self.heads} heads cannot share {self.kv_heads} key/value heads"
            )
        numbers("alibi", self.alibi, (0, self.heads))


@dataclasses.dataclass(frozen=True)
class RopeSpec:
    """Rotary positions (Su et al., 2021) of the first `dims` elements of every head.

    Pair i turns by position * theta^(-2i / dims) / divisors[i]; cosines and sines are multiplied by
    `magnitude`. Every known scaling (linear, Llama 3, YaRN, LongRoPE) is a choice of these two; no
    divisors are all ones. Sequences made for more than long_after tokens (if not 0) use
    long_divisors. style: which elements are a pair, "interleaved" (2i, 2i + 1), as GGUF stores
    the Llama family, or "half" (i, i + dims / 2), as Hugging Face does.
    """

    theta: float
    dims: int
    style: RopeStyle
    divisors: tuple[float, ...] = ()
    magnitude: float = 1.0
    long_after: int = 0
    long_divisors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        positive("rope theta", self.theta)
        whole("rope dims", self.dims, 1024)
        if self.dims % 2:
            raise CorruptModel(f"model config: rope dims {self.dims} is odd, RoPE rotates pairs")
        one_of("rope style", self.style, ("interleaved", "half"))
        numbers("rope divisors", self.divisors, (0, self.dims // 2))
        positive("rope magnitude", self.magnitude)
        whole("rope long_after", self.long_after, MAX_CONTEXT, least=0)
        lengths = (self.dims // 2,) if self.long_after else (0,)
        numbers("rope long_divisors", self.long_divisors, lengths)


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What layers of one kind see: `window` tokens, their own included (None: all); `rope` or none.

    Models alternate kinds (Gemma: local and global; SmolLM3: with and without positions).
    """

    rope: RopeSpec | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None:
            whole("window", self.window, MAX_CONTEXT)


@dataclasses.dataclass(frozen=True)
class FFNSpec:
    """A feed-forward network of `size` neurons: down(act(gate x) * up x), or down(act(up x)).

    bias: of gate, up and down. "gelu" is the tanh form, "gelu_erf" the exact one, "relu2" the
    square of relu. threshold: relu passes what exceeds it, unchanged (FATReLU; Kurtz et al., 2020).
    up_activation: what up goes through before act(gate x) multiplies it (dReLU; Song et al., 2024).
    """

    size: int
    activation: Activation
    gated: bool = True
    bias: bool = False
    threshold: float = 0.0
    up_activation: Literal["none", "relu"] = "none"

    def __post_init__(self) -> None:
        whole("ffn size", self.size, MAX_WIDTH)
        one_of("activation", self.activation, ("silu", "gelu", "gelu_erf", "relu", "relu2"))
        boolean("ffn gated", self.gated)
        boolean("ffn bias", self.bias)
        one_of("ffn up_activation", self.up_activation, ("none", "relu"))
        if not _is_number(self.threshold) or self.threshold != 0:
            positive("ffn threshold", self.threshold)
            if self.activation != "relu":
                raise CorruptModel(f"model config: {self.activation} takes no ffn threshold")
        if self.up_activation != "none" and not self.gated:
            raise CorruptModel("model config: an up_activation needs an ffn with gates")


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """How attention and feed-forward join the residual stream x.

    pre_norm: each reads norm(x), not x. post_norm: each adds norm(its result). parallel: both read
    the x that entered the block; with shared_norm, through one norm, attention's.
    """

    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            boolean(f"block {field.name}", getattr(self, field.name))
        if self.shared_norm and not (self.parallel and self.pre_norm):
            raise CorruptModel("model config: a shared norm needs a parallel block with pre_norm")


# ---------------------------------------------------------------- checks of values from a manifest


def whole(name: str, value: object, most: int, least: int = 1) -> None:
    """Raise CorruptModel unless value is an int in least .. most."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise CorruptModel(f"model config: {name} is {value!r}, expected {least} to {most}")


def positive(name: str, value: object) -> None:
    """Raise CorruptModel unless value is a positive, finite number."""
    if not _is_number(value) or not 0 < value < math.inf:  # type: ignore[operator]
        raise CorruptModel(f"model config: {name} is {value!r}, expected a positive number")


def boolean(name: str, value: object) -> None:
    """Raise CorruptModel unless value is True or False."""
    if not isinstance(value, bool):
        raise CorruptModel(f"model config: {name} is {value!r}, expected true or false")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise CorruptModel unless value is among choices."""
    if value not in choices:
        raise CorruptModel(f"model config: unknown {name} {value!r}; one of {', '.join(choices)}")


def numbers(name: str, values: tuple[float, ...], lengths: tuple[int, ...]) -> None:
    """Raise CorruptModel unless values are positive numbers, as many as one of lengths."""
    if not isinstance(values, tuple) or len(values) not in lengths:
        raise CorruptModel(f"model config: {name} must be {lengths[-1]} numbers")
    for value in values:
        positive(name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
