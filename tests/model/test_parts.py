"""Every part that a config can name, alone and together, against a page of plain numpy."""

from __future__ import annotations

import dataclasses

import numpy as np
import plain_model
import pytest
from random_model import random_weights, stored, write_model

from flashllm.errors import CorruptModel
from flashllm.flash.manifest import Manifest
from flashllm.model.config import ModelConfig
from flashllm.model.loader import load_decoder
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

COUNT, CONTEXT = 70, 96
TOKENS = np.random.default_rng(3).integers(0, 50, COUNT)

ROPE = RopeSpec(10000.0, 16, "half")
RMS, LAYER = NormSpec("rms", 1e-5), NormSpec("layer", 1e-5, bias=True)
BASE = ModelConfig(
    family="parts",
    hidden_size=48,
    vocab_size=50,
    context_length=CONTEXT,
    norm=RMS,
    attention=AttentionSpec(heads=4, kv_heads=2, head_dim=16, scale=0.25),
    ffn=FFNSpec(70, "silu"),
    kinds=(LayerKind(ROPE),),
    layers=(0, 0),
    tied_head=True,
)


def attention(**changes):
    return {"attention": dataclasses.replace(BASE.attention, **changes)}


def rope(**changes):
    return {"kinds": (LayerKind(dataclasses.replace(ROPE, **changes)),)}


DIVISORS = tuple(1.0 + 0.5 * i for i in range(8))
LONGER = tuple(2.0 + i for i in range(8))
LONG = {"divisors": DIVISORS, "long_divisors": LONGER, "magnitude": 1.19}

PARTS = {
    "plain": {},
    "layer norm": {"norm": LAYER},
    "layer norm without bias": {"norm": NormSpec("layer", 1e-3)},
    "rms norm with bias": {"norm": NormSpec("rms", 1e-3, bias=True)},
    "qkv bias": attention(qkv_bias=True),
    "out bias": attention(out_bias=True),
    "scale": attention(scale=0.07),
    "one kv head": attention(kv_heads=1),
    "wide heads": attention(head_dim=48, scale=0.1),
    "shared qk norm": attention(qk_norm=QKNorm(RMS, "shared")),
    "own qk norm": attention(qk_norm=QKNorm(NormSpec("layer", 1e-5), "own")),
    "joint qk norm": attention(qk_norm=QKNorm(RMS, "joint")),
    "qk norm with bias": attention(qk_norm=QKNorm(LAYER, "shared")),
    "score cap": attention(soft_cap=0.5),
    "alibi": attention(alibi=(0.5, 0.25, 0.125, 0.0625)) | {"kinds": (LayerKind(),)},
    "window": {"kinds": (LayerKind(ROPE, window=20),)},
    "window of one": {"kinds": (LayerKind(ROPE, window=1),)},
    "local and global": {
        "kinds": (LayerKind(ROPE, window=7), LayerKind(dataclasses.replace(ROPE, theta=1e6))),
        "layers": (0, 1, 0),
    },
    "layers without positions": {"kinds": (LayerKind(ROPE), LayerKind()), "layers": (0, 1)},
    "interleaved rope": rope(style="interleaved"),
    "partial rope": rope(dims=10),
    "partial interleaved rope": rope(dims=4, style="interleaved"),
    "rope divisors": rope(divisors=DIVISORS, magnitude=1.3),
    "rope for short sequences": rope(**LONG, long_after=CONTEXT),
    "rope for long sequences": rope(**LONG, long_after=CONTEXT - 1),
    "no gates": {"ffn": FFNSpec(70, "relu", gated=False)},
    "no gates, biases": {"ffn": FFNSpec(70, "gelu", gated=False, bias=True)},
    "gates, biases": {"ffn": FFNSpec(70, "gelu_erf", bias=True)},
    "exact gelu": {"ffn": FFNSpec(70, "gelu_erf", gated=False)},
    "no pre norm": {"block": BlockSpec(pre_norm=False, post_norm=True)},
    "both norms": {"block": BlockSpec(post_norm=True)},
    "no norms": {"block": BlockSpec(pre_norm=False), "layers": (0,)},
    "parallel": {"block": BlockSpec(parallel=True)},
    "parallel, shared norm": {"block": BlockSpec(parallel=True, shared_norm=True), "norm": LAYER},
    "parallel, post norms": {"block": BlockSpec(parallel=True, post_norm=True)},
    "parallel, no pre norm": {"block": BlockSpec(pre_norm=False, post_norm=True, parallel=True)},
    "embedding scale": {"embed_scale": 6.9},
    "learned positions": {"learned_positions": True, "kinds": (LayerKind(),)},
    "logit scale": {"logit_scale": 0.3, "norm": LAYER},
    "logit cap": {"logit_soft_cap": 1.5, "tied_head": False},
    "like gemma": {
        **attention(soft_cap=5.0, scale=0.2, qk_norm=QKNorm(RMS, "shared")),
        "kinds": (LayerKind(ROPE, window=24), LayerKind(ROPE)),
        "layers": (0, 1),
        "block": BlockSpec(post_norm=True),
        "ffn": FFNSpec(70, "gelu"),
        "embed_scale": 6.9,
        "logit_soft_cap": 3.0,
    },
    "like falcon": {
        **attention(kv_heads=1, alibi=(1.0, 0.5, 0.1, 0.01), qkv_bias=True, out_bias=True),
        "kinds": (LayerKind(window=33),),
        "norm": LAYER,
        "block": BlockSpec(parallel=True, shared_norm=True),
        "ffn": FFNSpec(70, "gelu_erf", gated=False, bias=True),
    },
    "like opt": {
        **attention(qkv_bias=True, out_bias=True),
        "learned_positions": True,
        "kinds": (LayerKind(),),
        "norm": LAYER,
        "ffn": FFNSpec(70, "relu", gated=False, bias=True),
    },
}


CASES = [(name, "tile") for name in PARTS]
CASES += [(name, "row") for name, changes in PARTS.items() if "ffn" in changes]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(config, weights, folder) of a part's model, made when asked for."""
    models = {}

    def make(name, dtype="f32", codec="tile"):
        if (name, dtype, codec) not in models:
            config = dataclasses.replace(BASE, **PARTS[name])
            weights = random_weights(config)
            folder = tmp_path_factory.mktemp("parts") / "model"
            models[name, dtype, codec] = (
                config,
                weights,
                write_model(folder, config, weights, dtype, codec),
            )
        return models[name, dtype, codec]

    return make


def run(path, cuts=(COUNT,), n_ctx=CONTEXT, **options):
    """Logits of every token, in steps of the given lengths."""
    decoder = load_decoder(path, LoadOptions(**options))
    sequence = decoder.new_sequence(n_ctx)
    starts = np.cumsum([0, *cuts[:-1]])
    kept = [
        decoder.step(sequence, TOKENS[start : start + count], logits="all")
        for start, count in zip(starts, cuts, strict=True)
    ]
    decoder.close()
    return np.concatenate(kept)


def difference(ours, expected):
    return np.abs(ours - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("name", "codec"), CASES)
def test_a_part_computes_what_plain_numpy_does(made, name, codec):
    config, weights, path = made(name, codec=codec)
    expected = plain_model.logits(config, weights, TOKENS, CONTEXT)
    if name != "plain":
        usual = dataclasses.replace(BASE, layers=(0,) * config.n_layers)
        plain = plain_model.logits(usual, random_weights(usual), TOKENS, CONTEXT)
        assert difference(plain, expected) > 1e-3
    assert difference(run(path, backend="reference"), expected) < 1e-5
    assert difference(run(path, threads=2, kv_dtype="f32"), expected) < 1e-5


@pytest.mark.parametrize(("name", "codec"), CASES)
def test_bitwise_whatever_the_chunks_and_threads(made, name, codec):
    path = made(name, "f32" if name.startswith("like") else "q4", codec)[2]
    expected = run(path, [1] * COUNT, threads=1)
    assert np.isfinite(expected).all()
    for threads, cuts in ((1, [COUNT]), (2, [3, 30, 37]), (2, [COUNT - 1, 1])):
        assert np.array_equal(run(path, cuts, threads=threads), expected)


@pytest.mark.parametrize("name", ["like gemma", "like falcon", "like opt"])
def test_quantised_weights_are_used_as_they_are_stored(made, name):
    """int8 activations of the feed-forward are what is left between the two."""
    config, weights, path = made(name, "q8")
    expected = plain_model.logits(config, stored(weights, "q8"), TOKENS, CONTEXT)
    assert difference(run(path, threads=2), expected) < 0.05


def test_rope_follows_what_a_sequence_was_made_for(made):
    """A short and a long sequence in one step, each with its own table."""
    config, weights, path = made("rope for long sequences")
    decoder = load_decoder(path, LoadOptions(threads=2, kv_dtype="f32"))
    sequences = [decoder.new_sequence(n) for n in (CONTEXT - 1, CONTEXT)]
    for at in range(40):
        got = decoder.forward([TOKENS[at]] * 2, sequences, [at] * 2)
    for row, n_ctx in enumerate((CONTEXT - 1, CONTEXT)):
        expected = plain_model.logits(config, weights, TOKENS[:40], n_ctx)
        assert difference(got[row], expected[-1]) < 1e-5
    decoder.close()


def test_sequences_of_windows_share_a_step(made):
    """Four rows that are not of one sequence, and four that are: windows as if each were alone."""
    path = made("local and global")[2]
    decoder = load_decoder(path, LoadOptions(threads=2))
    together = [decoder.new_sequence(CONTEXT) for _ in range(2)]
    alone = [decoder.new_sequence(CONTEXT) for _ in range(2)]
    expected = [
        decoder.step(s, TOKENS[:n], logits="all") for s, n in zip(alone, (33, 6), strict=True)
    ]
    owners = [together[0]] * 33 + [together[1]] * 6
    positions = np.concatenate([np.arange(33), np.arange(6)])
    got = decoder.forward(np.concatenate([TOKENS[:33], TOKENS[:6]]), owners, positions)
    assert np.array_equal(got, np.concatenate(expected))
    decoder.close()


@pytest.mark.parametrize(
    ("role", "shape"), [("layers.1.attn_q_bias", (63,)), ("layers.0.ffn_down_bias", None)]
)
def test_vectors_of_another_shape_are_refused(tmp_path, role, shape):
    config = dataclasses.replace(BASE, **PARTS["like opt"])
    weights = random_weights(config)
    if shape is None:
        del weights[role]
    else:
        weights[role] = np.ones(shape, np.float32)
    path = write_model(tmp_path / "model", config, weights)
    with pytest.raises(CorruptModel, match=f"{role}.*convert the model again"):
        load_decoder(path, LoadOptions(threads=1))


def test_a_network_without_gates_is_not_one_with(tmp_path):
    config = dataclasses.replace(BASE, **PARTS["no gates"])
    weights = random_weights(config)
    gated = dataclasses.replace(config, ffn=FFNSpec(70, "relu"))
    path = write_model(tmp_path / "model", config, weights)
    other = write_model(tmp_path / "other", gated, random_weights(gated))
    # A config that says one thing over units that say another.
    for source, wrong in ((path, gated), (other, config)):
        rewrite_config(source, wrong)
        with pytest.raises(CorruptModel, match="does not have the shape"):
            load_decoder(source, LoadOptions(threads=1))


def rewrite_config(path, config):
    file = path / "manifest.json"
    manifest = Manifest.from_bytes(file.read_bytes(), "here")
    changed = dataclasses.replace(manifest, config=config.to_json())
    file.write_bytes(changed.to_bytes())
