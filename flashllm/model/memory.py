"""What a model takes of memory besides its weights, and what that leaves for them: arithmetic."""

from __future__ import annotations

from typing import Literal

from flashllm.cache.policy import LOOKUP_SLOTS, SPARSE_ROWS
from flashllm.errors import InvalidInput
from flashllm.model.config import ModelConfig
from flashllm.model.roles import roles
from flashllm.model.specs import RopeSpec

PAGE_TABLES = 512
"""Of so many bytes of a process one is the system's, to know where the others are: 8 of a page of
4 KiB. They count, as its own do, towards the limit of a control group."""

FIXED_BYTES = 120_000_000
"""What the process holds besides weights, KV caches and scratch: interpreter, libraries, compiled
kernels. See docs/measurements.md, "Memory besides weights"."""

TOKEN_BYTES = 400
"""What a tokeniser holds for each of its tokens: measured 345 to 395, of 32,000 to 262,144."""

STEP_TOKENS = 512
"""The most tokens of a step: a longer prompt is read in several."""

LOGIT_ROWS = 32
"""The most rows of logits computed at once: at 128k tokens of vocabulary 16 MB."""

UNIT_BYTES = 120
"""What each unit of a model takes besides its bytes: where it is on disk and in memory, its length,
its checksum, when it was used. Counted where units are as small as neurons."""

KVDtype = Literal["f16", "f32", "q8"]
"""What keys and values may be kept in."""

KV_BLOCK = 16
"""Positions whose keys and values are reserved together."""

_KV_ELEMENT_BYTES: dict[str, int] = {"f16": 2, "f32": 4, "q8": 1}
_Q8_SCALE_BYTES = 4  # of each key and each value of each head
_ROPE_STEP = 256  # positions whose cosines are computed together
_FLOAT = 4
_QUANTIZED = _FLOAT + 1 + 2 * _FLOAT / 32
"""Bytes of an element of activations with their int8 form: each 32 have a scale and a sum."""
_KEPT_TWICE = 2  # vectors: as they were read, and in whole vectors for kernels


def weights_room(budget: int, kv: int, scratch: int) -> int:
    """Bytes that `budget` leaves for weights beside KV caches and scratch; negative: too few."""
    room = budget - FIXED_BYTES - kv - scratch
    return room - max(0, room) // PAGE_TABLES


def budget_for(room: int, kv: int, scratch: int) -> int:
    """The least budget of which weights_room leaves so much."""
    return FIXED_BYTES + kv + scratch + room + max(0, room - 1) // (PAGE_TABLES - 1)


def kv_bytes(config: ModelConfig, n_ctx: int, dtype: KVDtype) -> int:
    """Bytes of the keys and values of `n_ctx` tokens. Raises InvalidInput for an unknown dtype."""
    if dtype not in _KV_ELEMENT_BYTES:
        raise InvalidInput(
            f"keys and values in {dtype!r}: choose one of {sorted(_KV_ELEMENT_BYTES)}"
        )
    per_layer = _KV_ELEMENT_BYTES[dtype] * config.kv_size
    if dtype == "q8":
        per_layer += _Q8_SCALE_BYTES * config.attention.kv_heads
    return 2 * config.n_layers * per_layer * _rounded(n_ctx, KV_BLOCK)


def scratch_bytes(
    config: ModelConfig, neurons: int, n_ctx: int, step_tokens: int = STEP_TOKENS
) -> int:
    """Bytes of everything else that a model in memory holds, for steps of up to `step_tokens`,
    or n_ctx if that is less.

    The buffers of a step (layers/buffers.py), those of the embedding and the head, cosines and
    sines of n_ctx positions, norms and biases, the tokeniser. neurons: computed at once at most,
    with those that fill a unit. Logits that are handed out, to be sampled from, are their owner's.
    """
    step_tokens = min(step_tokens, n_ctx)
    hidden = _padded(config.hidden_size)
    queries, keys = _padded(config.query_size), _padded(config.kv_size)
    fine = _FLOAT + 2 * _QUANTIZED
    # x and branch; both forms of attention_in, and ffn_in.
    row = hidden * (2 * _FLOAT + fine + _QUANTIZED)
    row += queries * (_FLOAT + _QUANTIZED) + 2 * keys * _FLOAT + _padded(neurons) * _QUANTIZED
    row += 5 * 8  # token, position, and where the keys and values are
    ropes = {kind.rope for kind in config.kinds if kind.rope}
    row += 8 * len(ropes)
    head_row = hidden * (_FLOAT + fine) + _padded(config.vocab_size) * _FLOAT
    head = min(step_tokens, LOGIT_ROWS) * head_row
    embedding = LOOKUP_SLOTS * (hidden * _FLOAT + 8 * (1 + config.learned_positions))
    turns = sum(_rope_bytes(rope, min(n_ctx, config.context_length)) for rope in ropes)
    tokeniser = TOKEN_BYTES * config.vocab_size
    return int(step_tokens * row + head) + embedding + turns + _vector_bytes(config) + tokeniser


def sparse_bytes(config: ModelConfig, units: int, gate_bytes: int, sparse: str | None) -> int:
    """Bytes that running a model of codec `row` takes besides: its index of so many units and, if
    it runs sparse, buffers for a few tokens and rows by which neurons are known to fire.

    gate_bytes: of these rows; "oracle" has them for nothing, to compare with.
    """
    index = UNIT_BYTES * units
    if sparse is None:
        return index
    of_neurons = SPARSE_ROWS * _padded(config.ffn.size) * 4 * _QUANTIZED + 72 * config.ffn.size
    return index + int(of_neurons) + (gate_bytes if sparse == "gate" else 0)


def _rope_bytes(rope: RopeSpec, positions: int) -> int:
    """A table's cosines and sines, of which rows are computed as far as they are used."""
    return 2 * _FLOAT * (rope.dims // 2) * _rounded(positions, _ROPE_STEP)


def _vector_bytes(config: ModelConfig) -> int:
    """Norms and biases."""
    elements = 0
    a = config.attention
    shared = {"attn_q_norm": a.heads, "attn_k_norm": a.kv_heads}
    for role, shape in roles(config).items():
        if len(shape) == 1:
            name = role.rpartition(".")[2].removesuffix("_bias")
            of_each_head = a.qk_norm is not None and a.qk_norm.span == "shared"
            elements += _padded(shape[0] * (shared.get(name, 1) if of_each_head else 1))
    return _KEPT_TWICE * _FLOAT * elements


def _padded(width: int) -> int:
    """Elements from one row of activations to the next, as kernels/weights.py has it."""
    return _rounded(width, 64)


def _rounded(count: int, step: int) -> int:
    return -(-count // step) * step
