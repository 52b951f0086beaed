"""Rotary positions: the scalings' formulas, and how both sources state them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.model.families import rope_scaling
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.rope import gguf_context, gguf_rope, hf_context, hf_rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def hf(**changes):
    metadata = {
        "hidden_size": 512,
        "num_attention_heads": 4,
        "max_position_embeddings": 131072,
        **changes,
    }
    return HFKeys("LlamaForCausalLM", metadata, (), None)


def gguf(vectors=None, **changes):
    metadata = {
        "llama.embedding_length": 512,
        "llama.attention.head_count": 4,
        "llama.context_length": 131072,
        **{f"llama.rope.{key.replace('__', '.')}": value for key, value in changes.items()},
    }
    vectors = {name: np.array(v, np.float32) for name, v in (vectors or {}).items()}
    return GGUFKeys("llama", metadata, vectors, vectors.__getitem__)


def test_short_waves_stay_and_long_ones_are_stretched():
    for divisors, factor in (
        (rope_scaling.llama3(500000.0, 128, 8.0, 1.0, 4.0, 8192), 8.0),
        (rope_scaling.yarn(1e6, 128, 4.0, 32768), 4.0),
    ):
        assert len(divisors) == 64
        assert divisors[0] == 1.0
        assert divisors[-1] == pytest.approx(factor)
        assert list(divisors) == sorted(divisors)
        assert any(1 < divisor < factor for divisor in divisors)
    # Llama 3.1 keeps what fits four times into 8192 tokens and divides what does not fit once.
    waves = [2 * math.pi * 500000 ** (2 * i / 128) for i in range(64)]
    divisors = rope_scaling.llama3(500000.0, 128, 8.0, 1.0, 4.0, 8192)
    assert [d == 1 for d in divisors] == [wave < 2048 for wave in waves]
    assert [d == 8 for d in divisors] == [wave > 8192 for wave in waves]


def test_magnitudes():
    assert rope_scaling.yarn_magnitude(4.0) == pytest.approx(1.1386294)  # 0.1 ln 4 + 1
    assert rope_scaling.yarn_magnitude(40.0, 1.0, 1.0) == 1.0  # DeepSeek-V2's
    assert rope_scaling.yarn_magnitude(0.5) == 1.0
    assert rope_scaling.longrope_magnitude(32.0, 4096) == pytest.approx(1.1902380)  # Phi-3 128k's
    assert rope_scaling.longrope_magnitude(1.0, 4096) == 1.0


def test_a_scaling_may_be_stated_in_two_ways():
    older = {"rope_theta": 5e5, "rope_scaling": LLAMA3}
    assert hf_rope(hf(**older)) == hf_rope(hf(rope_parameters={"rope_theta": 5e5, **LLAMA3}))
    linear = hf_rope(hf(rope_scaling={"type": "linear", "factor": 4}))
    assert linear.divisors == (4.0,) * 64
    assert linear == hf_rope(hf(rope_scaling={"rope_type": "linear", "factor": 4.0}))


def test_what_no_scaling_changes_nothing():
    plain = hf_rope(hf())
    assert (plain.theta, plain.dims, plain.divisors, plain.magnitude) == (1e4, 128, (), 1.0)
    for scaling in (None, {}, {"rope_type": "default"}, {"type": "dynamic", "factor": 2.0}):
        assert hf_rope(hf(rope_scaling=scaling)) == plain
    for changes in ({}, {"scaling__type": "none", "scaling__factor": 4.0}, {"scale_linear": 1.0}):
        assert gguf_rope(gguf(**changes), "half") == plain


def test_longrope_has_two_sets_and_older_names():
    factors = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    kinds = ("longrope", "su", "yarn")  # The first Phi-3 said "su", some said "yarn".
    ropes = {
        hf_rope(hf(rope_scaling={"type": kind, **factors}, original_max_position_embeddings=4096))
        for kind in kinds
    }
    assert len(ropes) == 1
    rope = ropes.pop()
    assert (rope.long_after, rope.long_divisors) == (4096, (2.0,) * 64)
    assert rope.magnitude == pytest.approx(1.1902380)
    read = gguf_rope(
        gguf(
            {"rope_factors_short.weight": [1.0] * 64, "rope_factors_long.weight": [2.0] * 64},
            scaling__original_context_length=4096,
            scaling__attn_factor=rope.magnitude,
        ),
        "half",
    )
    assert read == rope


def test_gguf_factors_multiply():
    stated = gguf({"rope_freqs.weight": [1.0, 3.0] * 32}, scaling__factor=2.0)
    assert gguf_rope(stated, "half").divisors == (2.0, 6.0) * 32
    assert gguf_rope(gguf(scale_linear=2.0), "half").divisors == (2.0,) * 64
    with pytest.raises(CorruptModel, match="3 factors"):
        gguf_rope(gguf({"rope_freqs.weight": [1.0, 2.0, 3.0]}), "half")


def test_yarn_of_both_sources():
    read = gguf_rope(
        gguf(scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=32768),
        "half",
    )
    assert read == hf_rope(hf(rope_scaling=YARN))
    assert hf_rope(hf(rope_scaling={**YARN, "factor": None})) == read
    louder = hf_rope(hf(rope_scaling={**YARN, "attention_factor": 2.0}))
    assert louder.magnitude == 2.0
    assert gguf_rope(gguf(scaling__type="yarn", scaling__yarn_ext_factor=0.0), "half").dims == 128


def test_yarn_may_lengthen_the_context():
    assert hf_context(hf(max_position_embeddings=32768, rope_scaling=YARN)) == 131072
    assert hf_context(hf(rope_scaling=YARN)) == 131072
    assert hf_context(hf(rope_scaling=LLAMA3, max_position_embeddings=8192)) == 8192
    assert gguf_context(gguf(scaling__type="yarn", scaling__factor=2.0)) == 262144


@pytest.mark.parametrize(
    "scaling",
    [
        {**YARN, "rope_theta": 1.0},
        {**YARN, "beta_fast": 1e-320},
        {**YARN, "factor": -1},
        {**YARN, "original_max_position_embeddings": 0},
        {**LLAMA3, "low_freq_factor": 4.0, "factor": "8"},
        {**LLAMA3, "rope_theta": 1e300},
        {"rope_type": "linear"},
        {"rope_type": "linear", "factor": float("inf")},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 64},
        {"rope_type": "longrope", "short_factor": ["1"] * 64, "long_factor": [1.0] * 64},
        {"rope_type": "default", "partial_rotary_factor": 1.5},
        {"rope_type": "default", "partial_rotary_factor": 1e-9},
        {"rope_type": 3},
        [],
        [LLAMA3],
        "linear",
    ],
)
def test_impossible_parameters_are_refused(scaling):
    try:
        rope = hf_rope(hf(rope_parameters=scaling))
    except FlashError as error:
        assert isinstance(error, CorruptModel)
        assert "\n" not in str(error)
    else:
        assert all(0 < divisor < math.inf for divisor in rope.divisors)
        assert scaling == [] or rope.divisors


def test_unknown_scalings_are_named():
    with pytest.raises(UnsupportedModel, match="'mrope'"):
        hf_rope(hf(rope_scaling={"type": "mrope"}))
    with pytest.raises(UnsupportedModel, match="'su'"):
        gguf_rope(gguf(scaling__type="su"), "half")
