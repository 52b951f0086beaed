"""A whole model in a page of float64 numpy, from a ModelConfig and weights by role: what the
decoder should compute, written without looking at layers or kernels."""

from __future__ import annotations

import math

import numpy as np

from flashllm.model.config import ModelConfig
from flashllm.model.specs import LayerKind, NormSpec, RopeSpec

Weights = dict[str, np.ndarray]


def logits(config: ModelConfig, weights: Weights, tokens: np.ndarray, n_ctx: int) -> np.ndarray:
    """float64 [tokens, vocabulary] of one sequence made for n_ctx tokens."""
    w = {role: values.astype(np.float64) for role, values in weights.items()}
    x = w["embed"][tokens] * config.embed_scale
    if config.learned_positions:
        x = x + w["positions"][: len(tokens)]
    for i in range(config.n_layers):
        x = _block(config, Layer(w, f"layers.{i}."), config.kind_of(i), x, n_ctx)
    x = _norm(config.norm, x, w["output_norm"], w.get("output_norm_bias"))
    result = config.logit_scale * (x @ w["embed" if config.tied_head else "output"].T)
    return _capped(result, config.logit_soft_cap)


class Layer:
    """The weights of one layer by role."""

    def __init__(self, weights: Weights, prefix: str):
        self._weights, self._prefix = weights, prefix

    def __getitem__(self, role: str) -> np.ndarray:
        return self._weights[self._prefix + role]

    def get(self, role: str) -> np.ndarray | None:
        """The vector, or None."""
        return self._weights.get(self._prefix + role)

    def product(self, role: str, x: np.ndarray) -> np.ndarray:
        """W x + b."""
        bias = self.get(f"{role}_bias")
        return x @ self[role].T + (0 if bias is None else bias)


def _block(config, layer, kind, x, n_ctx):
    block = config.block

    def normed(role, v):
        return _norm(config.norm, v, layer[role], layer.get(f"{role}_bias"))

    def branch(name, v):
        shared = block.shared_norm and name == "ffn"
        if block.pre_norm:
            v = normed("attn_norm" if shared else f"{name}_norm", v)
        y = _attention(config, layer, kind, v, n_ctx) if name == "attn" else _ffn(config, layer, v)
        return normed(f"{name}_post_norm", y) if block.post_norm else y

    if block.parallel:
        return x + branch("attn", x) + branch("ffn", x)
    x = x + branch("attn", x)
    return x + branch("ffn", x)


def _attention(config: ModelConfig, layer: Layer, kind: LayerKind, x: np.ndarray, n_ctx: int):
    a, count = config.attention, len(x)
    q, k, v = (layer.product(f"attn_{name}", x) for name in "qkv")
    heads = {"q": a.heads, "k": a.kv_heads}
    if a.qk_norm:
        split = {name: 1 if a.qk_norm.span == "joint" else heads[name] for name in heads}
        q, k = (
            _head_norms(a.qk_norm, y.reshape(count, split[name], -1), layer, f"attn_{name}_norm")
            for name, y in (("q", q), ("k", k))
        )
    q, k, v = (y.reshape(count, -1, a.head_dim) for y in (q, k, v))
    if kind.rope:
        q, k = _rotate(kind.rope, q, n_ctx), _rotate(kind.rope, k, n_ctx)
    back = np.arange(count)[:, None] - np.arange(count)
    visible = (back >= 0) & (back < (kind.window or count))
    out = np.empty_like(q)
    for head in range(a.heads):
        group = head // (a.heads // a.kv_heads)
        scores = _capped(q[:, head] @ k[:, group].T * a.scale, a.soft_cap)
        if a.alibi:
            scores = scores - a.alibi[head] * back
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, group]
    return layer.product("attn_out", out.reshape(count, -1))


def _head_norms(qk_norm, y, layer, role):
    shape = (-1,) if qk_norm.span == "shared" else (y.shape[1], -1)
    bias = layer.get(f"{role}_bias")
    bias = None if bias is None else bias.reshape(shape)
    return _norm(qk_norm.norm, y, layer[role].reshape(shape), bias)


def _ffn(config: ModelConfig, layer: Layer, x: np.ndarray) -> np.ndarray:
    act = {
        "relu": lambda v: np.maximum(v, 0),
        "silu": lambda v: v / (1 + np.exp(-v)),
        "gelu": lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
        "gelu_erf": lambda v: 0.5 * v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
    }[config.ffn.activation]
    up = layer.product("ffn_up", x)
    hidden = act(layer.product("ffn_gate", x)) * up if config.ffn.gated else act(up)
    return layer.product("ffn_down", hidden)


def _norm(spec: NormSpec, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None):
    if spec.kind == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + spec.eps) * weight
    return y if bias is None else y + bias


def _rotate(rope: RopeSpec, x: np.ndarray, n_ctx: int) -> np.ndarray:
    """x [tokens, heads, dim], as complex numbers."""
    pairs = rope.dims // 2
    long = rope.long_after and n_ctx > rope.long_after
    divisors = np.array((rope.long_divisors if long else rope.divisors) or [1.0] * pairs)
    speed = rope.theta ** (-2 * np.arange(pairs) / rope.dims) / divisors
    turn = rope.magnitude * np.exp(1j * np.arange(len(x))[:, None] * speed)[:, None]
    a, b = (
        (np.s_[..., 0 : rope.dims : 2], np.s_[..., 1 : rope.dims : 2])
        if rope.style == "interleaved"
        else (np.s_[..., :pairs], np.s_[..., pairs : rope.dims])
    )
    turned = (x[a] + 1j * x[b]) * turn
    y = x.copy()
    y[a], y[b] = turned.real, turned.imag
    return y


def _capped(x: np.ndarray, cap: float | None) -> np.ndarray:
    return x if cap is None else cap * np.tanh(x / cap)
