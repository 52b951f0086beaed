"""Families and configs: what they translate, and what they refuse by name."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families import family_of

METADATA = {
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.block_count": 30,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.context_length": 8192,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.vocab_size": 49152,
}
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())
)


def config(**changes):
    return family_of("llama").config_from_gguf({**METADATA, **changes}, False)


def test_llama_metadata_becomes_a_config():
    made = config()
    assert (made.head_dim, made.n_kv_heads, made.rope_theta) == (64, 3, 100000.0)
    assert made.tied_head
    assert ModelConfig.from_json(made.to_json()) == made


@pytest.mark.parametrize("key", sorted(METADATA))
@given(value=ANYTHING)
def test_any_value_gives_a_config_or_a_clear_error(key, value):
    try:
        made = config(**{key: value})
    except FlashError as error:
        assert "\n" not in str(error)
    else:
        assert made.hidden_size == made.n_heads * made.head_dim or key.endswith(
            ("head_count", "embedding_length")
        )


def test_a_missing_key_is_named():
    metadata = {k: v for k, v in METADATA.items() if k != "llama.block_count"}
    with pytest.raises(CorruptModel, match=r"lacks 'llama\.block_count'"):
        family_of("llama").config_from_gguf(metadata, False)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "yarn"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
        ({"llama.rope.dimension_count": 32}, "partial rotary"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    with pytest.raises(UnsupportedModel, match=named):
        config(**changes)


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(UnsupportedModel, match=r"'mamba'.*llama"):
        family_of("mamba")


@pytest.mark.parametrize(
    "changes",
    [
        {"n_heads": 7},
        {"head_dim": 63},
        {"n_layers": 0},
        {"n_layers": True},
        {"vocab_size": 1 << 40},
        {"norm_eps": float("nan")},
        {"rope_style": "spiral"},
        {"activation": "tanh"},
    ],
)
def test_configs_out_of_range_are_refused(changes):
    with pytest.raises(CorruptModel):
        dataclasses.replace(config(), **changes)
    with pytest.raises(CorruptModel):
        ModelConfig.from_json({**config().to_json(), **changes})


def test_unknown_config_keys_are_refused():
    with pytest.raises(CorruptModel, match="wings"):
        ModelConfig.from_json({**config().to_json(), "wings": 2})
