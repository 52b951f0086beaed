"""Families: what they make of either source, and what they refuse by name."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import gguf
import pytest
from family_gguf import INEXPRESSIBLE, INTERLEAVED
from family_models import variants, write_gguf
from family_older import older_config
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.formats.gguf import read_gguf
from flashllm.model.config import ModelConfig
from flashllm.model.families import FAMILIES, translate_gguf, translate_hf
from flashllm.model.families.falcon import slopes
from flashllm.model.roles import roles

GGUF_VARIANTS = sorted(variants().keys() - INEXPRESSIBLE)
GONE = object()

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 10**400, 1 << 62, 5e-324])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=4)
ANYTHING = PLAIN | st.lists(PLAIN, max_size=4) | st.dictionaries(st.text(max_size=4), PLAIN)


def no_vector(name):
    raise CorruptModel(f"tensor {name!r} is missing")


def from_hf(name="llama", **changes):
    """The translation of a variant's config.json with changes; GONE removes a key."""
    about = variants()[name]
    config = {k: v for k, v in {**about["config"], **changes}.items() if v is not GONE}
    return translate_hf(config, about["shapes"], no_vector)


def from_gguf(name="llama", changes=None, vectors=None):
    """As from_hf, of the variant's GGUF file; keys come without the architecture."""
    metadata, tensors, found = gguf_header(name)
    named = {f"{metadata['general.architecture']}.{k}": v for k, v in (changes or {}).items()}
    metadata = {k: v for k, v in {**metadata, **named}.items() if v is not GONE}
    found = {**found, **(vectors or {})}
    return translate_gguf(metadata, tensors | found.keys(), found.__getitem__)


@functools.cache
def gguf_header(name):
    """Metadata, names of tensors, and the vectors among them that positions come from."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(name, Path(folder) / "model.gguf")
        checkpoint = read_gguf(path)
        tensors = {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(path).tensors}
    vectors = {name: data for name, data in tensors.items() if name.startswith("rope")}
    return checkpoint.metadata, frozenset(tensors), vectors


def kinds(translation):
    config = translation.config
    return [config.kind_of(i) for i in range(config.n_layers)]


@pytest.mark.parametrize("name", variants())
def test_configs_of_transformers_4_and_5_are_the_same(name):
    made = from_hf(name).config
    config, shapes = variants()[name]["config"], variants()[name]["shapes"]
    older = translate_hf(older_config(config), shapes, no_vector).config
    assert older == made
    assert ModelConfig.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize("name", GGUF_VARIANTS)
def test_both_sources_give_one_config(name):
    hf, other = (made.config.to_json() for made in (from_hf(name), from_gguf(name)))
    style = "interleaved" if other["family"] in INTERLEAVED else "half"
    assert same(other, hf, style)


def same(made, hf, style):
    """Whether two parts of a config agree; GGUF's numbers are float32, its pairs in its order."""
    if isinstance(made, dict):
        assert made.keys() == hf.keys()
        expected = {**hf, "style": style} if "style" in hf else hf
        return all(same(made[key], expected[key], style) for key in made)
    if isinstance(made, tuple):
        return len(made) == len(hf) and all(map(same, made, hf, [style] * len(hf)))
    return made == (pytest.approx(hf, rel=1e-6) if isinstance(hf, float) else hf)


@settings(max_examples=600)
@given(data=st.data())
def test_any_value_in_config_json_gives_a_config_or_a_clear_error(data):
    name = data.draw(st.sampled_from(sorted(variants())))
    config = json.loads(json.dumps(variants()[name]["config"]))
    place = data.draw(st.sampled_from([v for v in (config, *config.values()) if type(v) is dict]))
    inner = data.draw(st.sampled_from([v for v in (place, *place.values()) if type(v) is dict]))
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(ANYTHING)
    check(lambda: translate_hf(config, variants()[name]["shapes"], no_vector))


@settings(max_examples=600)
@given(data=st.data())
def test_any_value_in_gguf_metadata_gives_a_config_or_a_clear_error(data):
    name = data.draw(st.sampled_from(GGUF_VARIANTS))
    metadata = gguf_header(name)[0]
    key = data.draw(st.sampled_from([k for k in metadata if not k.startswith("tokenizer")]))
    changes = {key.partition(".")[2]: data.draw(ANYTHING)}
    check(lambda: from_gguf(name, changes))


def check(translate):
    try:
        found = translate()
    except FlashError as error:
        assert "\n" not in str(error)
        return
    for role in roles(found.config):
        assert found.slices(role)


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"]
)
def test_a_missing_key_is_named(key):
    with pytest.raises(CorruptModel, match=rf"config\.json lacks '{key}'"):
        from_hf(**{key: GONE})
    with pytest.raises(CorruptModel, match=r"lacks 'llama\.block_count'"):
        from_gguf(changes={"block_count": GONE})


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("llama", {"num_local_experts": 8}, "mixture-of-experts"),
        (
            "llama",
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 8},
            "Qwen3Moe.*mixture",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "fp8.*original"),
        ("llama", {"compression_config": {"format": "int"}}, "quantised"),
        ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "mrope"),
        ("llama", {"hidden_act": "quick_gelu"}, "quick_gelu"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("gemma3", {"use_bidirectional_attention": True}, "bidirectional"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("opt", {"word_embed_proj_dim": 32}, "projected"),
        ("falcon-7b", {"rotary": False}, "neither rotary"),
        ("falcon-7b", {"activation": "tanh"}, "tanh"),
    ],
)
def test_what_is_not_supported_is_named(name, changes, named):
    with pytest.raises(UnsupportedModel, match=named):
        from_hf(name, **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"expert_count": 8}, "mixture-of-experts"),
        ({"rope.scaling.type": "su"}, "su"),
        ({"attention.value_length": 8}, "different sizes"),
    ],
)
def test_what_is_not_supported_in_gguf_is_named(changes, named):
    with pytest.raises(UnsupportedModel, match=named):
        from_gguf(changes=changes)


def test_an_unknown_architecture_lists_the_known():
    with pytest.raises(UnsupportedModel, match=r"'mamba'.*gptneox.*llama.*qwen3"):
        translate_gguf({"general.architecture": "mamba"}, (), no_vector)
    with pytest.raises(UnsupportedModel, match=r"'MambaForCausalLM'.*OPTForCausalLM"):
        from_hf(architectures=["MambaForCausalLM"])
    for named in (None, [], "Llama", [3]):
        with pytest.raises(CorruptModel, match="architectures"):
            from_hf(architectures=named)


def test_every_architecture_belongs_to_one_family():
    for kind in ("gguf_architectures", "hf_architectures"):
        found = [name for family in FAMILIES for name in getattr(family, kind)]
        assert len(found) == len(set(found))


# ------------------------------------------------------------- what configs leave out or say twice


def test_a_text_config_leaves_out_what_is_usual():
    # google/gemma-3-4b-it, config.json
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    made = translate_hf(config, (), no_vector)
    a = made.config.attention
    assert (a.heads, a.kv_heads, a.head_dim, a.scale) == (8, 4, 256, 1 / 16)
    assert made.config.vocab_size == 262208
    assert made.config.tied_head
    near, far = kinds(made)[0], kinds(made)[5]
    assert (near.window, near.rope.theta, near.rope.divisors) == (1024, 1e4, ())
    assert (far.window, far.rope.theta, set(far.rope.divisors)) == (None, 1e6, {8.0})
    assert [i for i, kind in enumerate(kinds(made)) if kind == far] == [5, 11, 17, 23, 29]


@pytest.mark.parametrize(("window", "found"), [(GONE, 4096), (None, None), (16, 16)])
def test_mistral_slides_unless_it_says_not(window, found):
    assert kinds(from_hf("mistral", sliding_window=window))[0].window == found


def test_falcon_keys_have_older_names():
    older = {"n_head": 4, "n_layer": 4, "num_attention_heads": GONE, "num_hidden_layers": GONE}
    older["architectures"] = ["RWForCausalLM"]
    assert from_hf("falcon-7b", **older).config == from_hf("falcon-7b").config
    # The published ones do not state the context.
    made = from_hf("falcon-7b", max_position_embeddings=GONE).config
    assert made.context_length == 2048


def test_tensors_go_by_other_prefixes():
    made = from_hf("gemma3-vision")
    assert made.slices("embed")[0].tensor == "language_model.model.embed_tokens.weight"
    newer = [
        name.replace("language_model.model.", "model.language_model.")
        for name in variants()["gemma3-vision"]["shapes"]
    ]
    made = translate_hf(variants()["gemma3-vision"]["config"], newer, no_vector)
    assert made.slices("embed")[0].tensor == "model.language_model.embed_tokens.weight"
    assert made.ignores("vision_tower.encoder.layers.0.mlp.fc1.bias")
    assert not made.ignores("model.language_model.layers.0.extra.weight")


@pytest.mark.parametrize(
    ("name", "tensor", "ignored"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", True),
        ("llama", "lm_head.weight", False),
        ("llama-tied", "lm_head.weight", True),
        ("neox", "gpt_neox.layers.1.attention.masked_bias", True),
        ("neox", "gpt_neox.layers.1.attention.bias", True),
        ("llama", "model.layers.0.self_attn.q_proj.bias", False),
    ],
)
def test_only_some_tensors_may_stay_unread(name, tensor, ignored):
    assert from_hf(name).ignores(tensor) == ignored


def test_gguf_states_what_llama_cpp_derives():
    old = {"attention.sliding_window_pattern": GONE, "rope.freq_base_swa": GONE}
    near = kinds(from_gguf("gemma3", old))
    assert [kind.window for kind in near] == [16] * 4
    assert near[0].rope.theta == 10000.0
    assert kinds(from_gguf("gemma3", {"attention.sliding_window_pattern": 2}))[1].window is None
    scale = from_gguf("gemma2", {"block_count": 46, **old}).config.attention.scale
    assert scale == (64 // 4) ** -0.5
    assert kinds(from_gguf("granite", {"rope.scaling.finetuned": False}))[0].rope is None


def test_alibi_slopes():
    assert slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]
    # Between powers of two: those of the lower one, then every second of the higher.
    assert slopes(6) == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])


# ------------------------------------------------------------------------------ our own manifests


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("attention", {"heads": 7}),
        ("attention", {"scale": float("nan")}),
        ("attention", {"alibi": [1.0]}),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 63, "style": "half"}}]),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 128, "style": "half"}}]),
        ("kinds", [{"rope": {"theta": 1e4, "dims": 16, "style": "spiral"}}]),
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
    told = json.loads(json.dumps(from_hf().config.to_json()))
    told[part] = {**told[part], **changes} if isinstance(changes, dict) else changes
    with pytest.raises(CorruptModel):
        ModelConfig.from_json(told)


def test_unknown_config_keys_are_refused():
    told = from_hf().config.to_json()
    with pytest.raises(CorruptModel, match="wings"):
        ModelConfig.from_json({**told, "wings": 2})
    with pytest.raises(CorruptModel, match=r"norm.*wings"):
        ModelConfig.from_json({**told, "norm": {"wings": 2}})


def test_sparse_relatives_of_llama():
    """FATReLU keeps its threshold; Bamboo's ReLU of up, its makers' predictors are not missed."""
    prosparse = from_hf("prosparse").config.ffn
    assert (prosparse.activation, prosparse.threshold, prosparse.up_activation) == (
        "relu",
        0.1,
        "none",
    )
    bamboo = from_hf("bamboo")
    assert (bamboo.config.ffn.activation, bamboo.config.ffn.up_activation) == ("relu", "relu")
    assert bamboo.ignores("model.layers.3.mlp.predictor.fc1.weight")
    assert (
        from_hf("llama", hidden_act="fatrelu", hidden_act_param=0.02).config.ffn.threshold == 0.02
    )
    with pytest.raises(UnsupportedModel, match="sparsellama"):
        from_hf("prosparse", model_type="llama")
    with pytest.raises(UnsupportedModel, match="Bamboo"):
        from_hf("bamboo", hidden_act="silu")
    for name, changes in {
        "prosparse": {"hidden_act_param": -0.1},
        "llama": {"hidden_act": "fatrelu"},
    }.items():
        with pytest.raises(CorruptModel, match=r"threshold|hidden_act_param"):
            from_hf(name, **changes)
    with pytest.raises(UnsupportedModel, match="fatrelu"):
        from_hf("falcon-7b", activation="fatrelu")


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 0.1, "activation": "silu"},
        {"threshold": -1},
        {"threshold": "0"},
        {"threshold": False},
        {"up_activation": "silu"},
        {"up_activation": "relu", "gated": False},
        {"activation": "relu3"},
    ],
)
def test_impossible_activations_in_a_manifest_are_refused(changes):
    config = from_hf("llama-relu").config.to_json()
    with pytest.raises(CorruptModel, match=r"threshold|activation"):
        ModelConfig.from_json({**config, "ffn": {**config["ffn"], **changes}})
