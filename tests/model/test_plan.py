"""The plan's arithmetic and words, of a shape and sizes given as numbers."""

from __future__ import annotations

import dataclasses

import pytest

from flashllm.errors import InvalidInput
from flashllm.model.config import ModelConfig
from flashllm.model.plan import DEFAULT_CONTEXT, FIXED_BYTES, Plan, Sizes, kv_bytes, plan
from flashllm.model.specs import AttentionSpec, FFNSpec, LayerKind, NormSpec, RopeSpec

# Llama-2-7B's shape. Its keys and values take 512 KiB a token.
CONFIG = ModelConfig(
    family="llama",
    hidden_size=4096,
    vocab_size=32000,
    context_length=8192,
    norm=NormSpec("rms", 1e-5),
    attention=AttentionSpec(heads=32, kv_heads=32, head_dim=128, scale=128**-0.5),
    ffn=FFNSpec(11008, "silu"),
    kinds=(LayerKind(RopeSpec(10000.0, 128, "half")),),
    layers=(0,) * 32,
    tied_head=False,
)
GB = 10**9
SIZES = Sizes(weights=4 * GB - 5000, files=4 * GB, stored=4 * GB + 9, fetched=5 * GB, to_store=7)


def make(mem_budget: int | str, n_ctx: int | None = None, **changes: object) -> Plan:
    made = plan("seven", CONFIG, SIZES, ("q4m", "q8"), mem_budget=mem_budget, n_ctx=n_ctx)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_the_sum() -> None:
    made = make("12GB")
    assert made.n_ctx == DEFAULT_CONTEXT
    assert made.kv_bytes == kv_bytes(CONFIG, 4096, "f16") == 4096 * 512 * 1024
    assert made.total_bytes == 4 * GB + 2 * GB + 147_483_648 + FIXED_BYTES
    assert made.disk_bytes == 5 * GB + 7
    assert made.fits
    assert made.largest_context == made.n_ctx


def test_a_budget_of_exactly_what_is_needed_fits() -> None:
    needed = make("12GB").smallest_budget
    assert make(needed).fits
    assert not make(needed - 1).fits
    assert make(needed - 1).largest_context == DEFAULT_CONTEXT - 16


@pytest.mark.parametrize("n_ctx", [1, 100, 8192])
def test_the_largest_context_fits_and_one_more_does_not(n_ctx: int) -> None:
    budget = make("12GB", n_ctx).smallest_budget
    most = make(budget, 8192).largest_context
    assert most == -(-n_ctx // 16) * 16  # keys and values are reserved by 16 positions
    assert make(budget, most).fits
    assert most == 8192 or not make(budget, most + 1).fits


def test_verdicts_say_what_to_do() -> None:
    assert make("12GB").verdict == "fits: needs 6.4 GB of the 12 GB allowed"
    assert "a context of " in make("5GB").verdict
    assert "fewer bits" in make("1GB", dtypes=("bf16",)).verdict
    assert "smaller model" in make("1GB", dtypes=("q4", "q8")).verdict
    for budget in ("12GB", "5GB", "1GB", "0.5x"):
        made = make(budget)
        assert made.verdict.startswith("fits" if made.fits else "does not fit")
        assert "\n" not in made.summary
        assert made.name in made.summary


def test_keys_and_values_of_f32_take_twice_the_room() -> None:
    f16, f32 = make("12GB"), plan("m", CONFIG, SIZES, ("q8",), mem_budget="12GB", kv_dtype="f32")
    assert (f32.kv_dtype, f32.kv_bytes) == ("f32", 2 * f16.kv_bytes)
    assert f32.total_bytes == f16.total_bytes + f16.kv_bytes
    q8 = plan("m", CONFIG, SIZES, ("q8",), mem_budget="12GB", kv_dtype="q8")
    assert q8.kv_bytes == f16.kv_bytes // 2 + f16.kv_bytes // CONFIG.attention.head_dim * 2
    with pytest.raises(InvalidInput, match="'q3'"):
        plan("m", CONFIG, SIZES, ("q8",), mem_budget=1, kv_dtype="q3")  # type: ignore[arg-type]


@pytest.mark.parametrize("n_ctx", [0, -1, 8193])
def test_contexts_the_model_was_not_made_for(n_ctx: int) -> None:
    with pytest.raises(InvalidInput, match="1 to 8192"):
        make("12GB", n_ctx)


def test_short_models_have_short_contexts() -> None:
    short = dataclasses.replace(CONFIG, context_length=512)
    assert plan("s", short, SIZES, ("q4",), mem_budget=1).n_ctx == 512
