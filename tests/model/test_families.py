"""Families and configs: what they translate, and what they refuse by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families import translate_gguf

METADATA = {
    "general.architecture": "llama",
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
    return translate_gguf({**METADATA, **changes}, (), lambda name: None).config


def test_llama_metadata_becomes_a_config():
    made = config()
    assert (made.attention.head_dim, made.attention.kv_heads) == (64, 3)
    assert made.kinds[0].rope.theta == 100000.0
    assert made.tied_head
    assert ModelConfig.from_json(made.to_json()) == made


@pytest.mark.parametrize("key", sorted(METADATA.keys() - {"general.architecture"}))
@given(value=ANYTHING)
def test_any_value_gives_a_config_or_a_clear_error(key, value):
    try:
        made = config(**{key: value})
    except FlashError as error:
        assert "\n" not in str(error)
    else:
        assert made.hidden_size == made.query_size or key.endswith(
            ("head_count", "embedding_length")
        )


def test_a_missing_key_is_named():
    metadata = {k: v for k, v in METADATA.items() if k != "llama.block_count"}
    with pytest.raises(CorruptModel, match=r"lacks 'llama\.block_count'"):
        translate_gguf(metadata, (), lambda name: None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"llama.rope.scaling.type": "su"}, "su"),
        ({"llama.expert_count": 8}, "mixture-of-experts"),
    ],
)
def test_what_is_not_supported_is_named(changes, named):
    with pytest.raises(UnsupportedModel, match=named):
        config(**changes)


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(UnsupportedModel, match=r"'mamba'.*llama"):
        config(**{"general.architecture": "mamba"})


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("attention", {"heads": 7}),
        ("attention", {"scale": float("nan")}),
        ("attention", {"alibi": [1.0]}),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 63, "style": "half"}}]),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 128, "style": "half"}}]),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 64, "style": "spiral"}}]),
        ("kinds", [{"window": 0}]),
        ("kinds", []),
        ("layers", []),
        ("layers", [True]),
        ("layers", [1]),
        ("vocab_size", 1 << 40),
        ("norm", {"eps": float("nan")}),
        ("norm", {"kind": "batch"}),
        ("norm", 3),
        ("ffn", {"activation": "tanh"}),
        ("block", {"shared_norm": True}),
        ("tied_head", 1),
    ],
)
def test_configs_out_of_range_are_refused(part, changes):
    told = json.loads(json.dumps(config().to_json()))
    assert ModelConfig.from_json(told) == config()
    told[part] = {**told[part], **changes} if isinstance(changes, dict) else changes
    with pytest.raises(CorruptModel):
        ModelConfig.from_json(told)


def test_unknown_config_keys_are_refused():
    with pytest.raises(CorruptModel, match="wings"):
        ModelConfig.from_json({**config().to_json(), "wings": 2})
    with pytest.raises(CorruptModel, match=r"norm.*wings"):
        ModelConfig.from_json({**config().to_json(), "norm": {"wings": 2}})
