"""The scratch memory of a step: allocated once, shared by all layers, addressed by programs."""

from __future__ import annotations

import numpy as np

from flashllm.kernels.program import Integers
from flashllm.kernels.weights import Activations, Floats, KVRows, padded


class StepBuffers:
    """Room for `capacity` tokens of one step.

    x is the residual stream; normed feeds attention and feed-forward; kv says where each row's
    sequence keeps its keys and values.
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
        kv_dtype: np.dtype[np.floating],
    ):
        self.capacity = capacity
        self.tokens: Integers = np.zeros(capacity, np.int64)
        self.positions: Integers = np.zeros(capacity, np.int64)
        self.x: Floats = np.zeros((capacity, padded(hidden)), np.float32)
        self.normed = Activations(capacity, hidden)
        self.queries: Floats = np.zeros((capacity, padded(heads * head_dim)), np.float32)
        self.keys: Floats = np.zeros((capacity, padded(kv_heads * head_dim)), np.float32)
        self.values: Floats = np.zeros((capacity, padded(kv_heads * head_dim)), np.float32)
        self.attended = Activations(capacity, heads * head_dim)
        self.neurons = Activations(capacity, neurons)
        self.kv = KVRows(capacity, kv_heads, head_dim, kv_dtype)
