"""The scratch memory of a step: allocated once, shared by all layers, addressed by programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashllm.kernels.program import Integers
from flashllm.kernels.weights import Activations, FineActivations, Floats, KVRows, padded


class StepBuffers:
    """Room for `capacity` tokens of one step.

    x is the residual stream; attention_in and ffn_in are its normed forms; branch is what attention
    or feed-forward gives, where that is normed before it is added to x; kv says where each row's
    sequence keeps its keys and values.

    attention_in is quantised twice, as the head's input is. Of the mean KL divergence that int8
    activations cost SmolLM2 (0.0026 against float32), the input of query, key and value caused
    0.0007 and the head's 0.0007; they are the cheapest products, and in 15 bits they cause none.
    The feed-forward's (0.0007 and 0.0004) would double most of a prompt's arithmetic.

    kept_rows: of how many of a sparse step's rows, the first ones, neurons are to stay in memory.
    """

    def __init__(
        self,
        capacity: int,
        *,
        hidden: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        neurons: int,
        kv_dtype: np.dtype[Any],
    ):
        self.capacity = capacity
        self.kept_rows = capacity
        self.hidden = hidden
        self.tokens: Integers = np.zeros(capacity, np.int64)
        self.positions: Integers = np.zeros(capacity, np.int64)
        self.x: Floats = np.zeros((capacity, padded(hidden)), np.float32)
        self.branch: Floats = np.zeros_like(self.x)
        self.attention_in = FineActivations(capacity, hidden)
        self.ffn_in = Activations(capacity, hidden)
        self.queries: Floats = np.zeros((capacity, padded(heads * head_dim)), np.float32)
        self.keys: Floats = np.zeros((capacity, padded(kv_heads * head_dim)), np.float32)
        self.values: Floats = np.zeros((capacity, padded(kv_heads * head_dim)), np.float32)
        self.attended = Activations(capacity, heads * head_dim)
        self.neurons = Activations(capacity, neurons)
        self.kv = KVRows(capacity, kv_heads, head_dim, kv_dtype)
