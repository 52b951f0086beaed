"""What a model takes of memory besides its weights: the arithmetic against what is allocated."""

from __future__ import annotations

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_model import random_weights, write_model

from flashllm.cache.kv import Sequence
from flashllm.flash.format import read_model
from flashllm.flash.parts import FFNPart
from flashllm.layers.buffers import StepBuffers
from flashllm.model.config import ModelConfig
from flashllm.model.loader import KV_DTYPES, load_decoder
from flashllm.model.memory import (
    FIXED_BYTES,
    LOGIT_ROWS,
    STEP_TOKENS,
    TOKEN_BYTES,
    budget_for,
    kv_bytes,
    scratch_bytes,
    weights_room,
)
from flashllm.model.options import LoadOptions
from flashllm.model.specs import (
    AttentionSpec,
    BlockSpec,
    FFNSpec,
    LayerKind,
    NormSpec,
    QKNorm,
    RopeSpec,
)

RMS = NormSpec("rms", 1e-5)
PLAIN = ModelConfig(
    family="memory",
    hidden_size=240,
    vocab_size=1000,
    context_length=512,
    norm=RMS,
    attention=AttentionSpec(heads=6, kv_heads=2, head_dim=32, scale=0.2),
    ffn=FFNSpec(900, "silu"),
    kinds=(LayerKind(RopeSpec(10000.0, 32, "half")), LayerKind(RopeSpec(1e6, 16, "half"))),
    layers=(0, 1, 0, 1, 0, 1),
    tied_head=True,
)
LAYER = NormSpec("layer", 1e-5, bias=True)
BIASED = dataclasses.replace(
    PLAIN,
    norm=LAYER,
    attention=dataclasses.replace(
        PLAIN.attention, qkv_bias=True, out_bias=True, qk_norm=QKNorm(LAYER, "shared")
    ),
    ffn=FFNSpec(900, "relu", gated=False, bias=True),
    block=BlockSpec(post_norm=True),
    tied_head=False,
)
CONFIGS = {"plain": PLAIN, "biased": BIASED, "no positions": dataclasses.replace(
    PLAIN, kinds=(LayerKind(None),), layers=(0,) * 6, hidden_size=64)}  # fmt: skip


OBJECTS = 250_000
"""Python's objects, and tables of units, of a model of six layers."""


def padded_neurons(folder: Path) -> int:
    parts = [part for group in read_model(folder).groups.values() for part in group.parts]
    return max(p.units * p.neurons_per_unit for p in parts if isinstance(p, FFNPart))


@pytest.mark.parametrize("name", CONFIGS)
def test_scratch_is_what_a_decoder_allocates(tmp_path: Path, name: str) -> None:
    """All memory of a decoder but its weights, which lie where Python does not count."""
    config = CONFIGS[name]
    folder = write_model(tmp_path / "m", config, random_weights(config), "q8")
    load_decoder(
        folder, LoadOptions(threads=1)
    ).close()  # what stays for the next one is not this one's
    tracemalloc.start()
    try:
        decoder = load_decoder(folder, LoadOptions(threads=1))
        found, _peak = tracemalloc.get_traced_memory()
        decoder.close()
    finally:
        tracemalloc.stop()
    planned = scratch_bytes(config, padded_neurons(folder), config.context_length)
    planned -= TOKEN_BYTES * config.vocab_size  # a decoder has no tokeniser
    assert planned <= found < planned + OBJECTS


def test_scratch_of_fewer_tokens_and_positions() -> None:
    """Rows of a step cost the same each; positions cost a row of each rope's tables."""
    one, two, three = (scratch_bytes(PLAIN, 928, 256, rows) for rows in (100, 101, 102))
    assert two - one == three - two > 0
    assert scratch_bytes(PLAIN, 928, 257, 100) == scratch_bytes(PLAIN, 928, 512, 100)
    longer = dataclasses.replace(PLAIN, context_length=4096)
    turns = 256 * 8 * (16 + 8)
    assert scratch_bytes(longer, 928, 769) == scratch_bytes(longer, 928, 768) + turns
    assert scratch_bytes(longer, 928, 1 << 20) == scratch_bytes(longer, 928, 4096)


def test_a_steps_buffers_alone() -> None:
    """The widths of a 7B, without loading one."""
    seven = dataclasses.replace(
        PLAIN,
        hidden_size=4096,
        attention=AttentionSpec(heads=32, kv_heads=32, head_dim=128, scale=0.1),
    )
    rows = 3
    buffers = StepBuffers(
        rows,
        hidden=4096,
        heads=32,
        kv_heads=32,
        head_dim=128,
        neurons=11008,
        kv_dtype=np.dtype(np.float16),
    )
    turns = rows * 8 * 2
    head = rows * (4096 * (4 + 4 + 2 * 5.25) + 1024 * 4)
    rest = scratch_bytes(seven, 11008, 256, 0)  # vectors, and the tables of positions
    planned = scratch_bytes(seven, 11008, 256, rows) - rest - head - turns
    assert planned == held(buffers)
    assert (LOGIT_ROWS, STEP_TOKENS) == (32, 512)


def held(thing: object) -> int:
    """Bytes of all arrays in an object and the objects in it."""
    if isinstance(thing, np.ndarray):
        return thing.nbytes
    return sum(held(value) for value in vars(thing).values()) if hasattr(thing, "__dict__") else 0


@pytest.mark.parametrize("n_ctx", [1, 16, 17, 250])
def test_keys_and_values_are_what_a_session_reserves(n_ctx: int) -> None:
    for name, dtype in KV_DTYPES.items():
        sequence = Sequence(6, 2, 32, n_ctx, dtype)
        assert kv_bytes(PLAIN, n_ctx, name) == sequence.nbytes  # type: ignore[arg-type]


def test_room_for_weights() -> None:
    assert weights_room(FIXED_BYTES + 100, 30, 20) == 50
    assert weights_room(FIXED_BYTES, 30, 20) == -50


@given(st.integers(0, 1 << 40))
def test_page_tables_are_paid_for(room: int) -> None:
    budget = budget_for(room, 30, 20)
    assert weights_room(budget, 30, 20) == room
    assert weights_room(budget - 1, 30, 20) == room - 1
    assert budget - FIXED_BYTES - 50 - room == pytest.approx(room / 511, abs=1)
