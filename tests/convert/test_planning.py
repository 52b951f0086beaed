"""Plans made from headers alone, held to what converting and loading really take."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_hf

from flashllm import machine
from flashllm.cache.kv import Sequence
from flashllm.convert import convert
from flashllm.convert.planning import guess_dtypes, plan_checkpoint, plan_model, plan_shape
from flashllm.convert.source import understand
from flashllm.errors import CorruptModel, InvalidInput, OutOfBudget, UnsupportedModel
from flashllm.flash.format import read_model
from flashllm.formats.opening import open_checkpoint
from flashllm.model.loader import KV_DTYPES, load_decoder
from flashllm.model.memory import FIXED_BYTES
from flashllm.model.options import LoadOptions
from flashllm.sizes import SHARE_OVERHEAD

SIX = LoadOptions("6GB")
SHAPE: dict[str, Any] = {"layers": 3, "hidden": 96, "ffn": 160, "heads": 6, "kv_heads": 3}


def mixed(path: Path) -> Path:
    """A GGUF file whose matrices have several types, gate and up of a layer among them."""
    types = {"attn_v": "Q8_0", "ffn_gate": "Q4_1", "ffn_up": "Q8_0", "token_embd": "F16"}
    weights = tiny.random_weights(2, 64, 96, 4, 2, 320)
    tensors = {
        name: (w, types.get(name.split(".")[-2], "Q4_0") if w.ndim == 2 else "F32")
        for name, w in weights.items()
    }
    whole = tiny.write_gguf(path)
    metadata = open_checkpoint(whole).metadata
    path.write_bytes(tiny.gguf_bytes(metadata, tensors))
    return path


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize("dtype", ["keep", "f16", "q8", "q4"])
@pytest.mark.parametrize("kind", ["gguf", "mixed", "untied"])
def test_the_plan_is_what_conversion_writes(
    tmp_path: Path, kind: str, dtype: str, codec: str
) -> None:
    if kind == "mixed":
        source = mixed(tmp_path / "m.gguf")
    else:
        tied = kind != "untied"
        source = tiny.write_gguf(tmp_path / "m.gguf", dtype="Q4_1", tied=tied, **SHAPE)
    assert_exact(source, tmp_path / "m.flash", dtype, codec)


def assert_exact(source: Path, target: Path, dtype: str, codec: str) -> None:
    """Plan, then convert, then compare."""
    plan = plan_checkpoint(source, SIX, dtype=dtype, codec=codec)
    folder = convert(source, target, dtype=dtype, codec=codec)
    model = read_model(folder)
    assert plan.weight_bytes == model.unit_bytes
    assert plan.resident_bytes == sum(int(g.offsets[-1]) for g in model.groups.values())
    stored = sum(file.stat().st_size for file in folder.iterdir())
    assert stored <= plan.stored_bytes < stored + (2 << 20)
    assert plan.disk_bytes == plan.stored_bytes
    local = plan_model(folder, SIX)
    assert local.disk_bytes == 0
    stored = {"name": plan.name, "disk_bytes": plan.disk_bytes, "stored_bytes": plan.stored_bytes}
    assert dataclasses.replace(local, **stored) == plan


@pytest.mark.parametrize("dtype", ["keep", "q8", "q4"])
@pytest.mark.parametrize("shards", [1, 2])
def test_the_plan_of_a_folder(tmp_path: Path, dtype: str, shards: int) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m", dtype="BF16", shards=shards, **SHAPE)
    plan = plan_checkpoint(folder, SIX, dtype=dtype)
    assert plan.name == "m"
    source = tiny.write_gguf(tmp_path / "m.gguf", dtype="BF16", **SHAPE)  # of the same shape
    assert plan.weight_bytes == plan_checkpoint(source, LoadOptions(1), dtype=dtype).weight_bytes
    assert plan == plan_checkpoint(open_checkpoint(folder), SIX, dtype=dtype)


def test_keys_and_values_are_what_a_session_reserves(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf")
    for name, dtype in KV_DTYPES.items():
        options = LoadOptions("6GB", 64, kv_dtype=name)  # type: ignore[arg-type]
        plan = plan_checkpoint(path, options)
        assert plan.kv_bytes == Sequence(2, 2, 16, 64, dtype).nbytes
        assert (plan.n_ctx, plan.kv_dtype) == (64, name)


def test_budgets(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf")
    exact = plan_checkpoint(path, SIX).smallest_budget
    assert plan_checkpoint(path, LoadOptions(exact)).fits
    assert not plan_checkpoint(path, LoadOptions(exact - 1)).fits
    half = plan_checkpoint(path, LoadOptions("0.5x"))
    assert half.budget == SHARE_OVERHEAD + half.weight_bytes // 2
    for free in (LoadOptions(), LoadOptions(None)):
        assert plan_checkpoint(path, free).fits
        assert FIXED_BYTES < plan_checkpoint(path, free).budget <= machine.memory().total
    with pytest.raises(InvalidInput, match="not a size"):
        plan_checkpoint(path, LoadOptions("lots"))
    with pytest.raises(InvalidInput, match="1 to 128"):
        plan_checkpoint(path, LoadOptions("6GB", 129))


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_is_what_loading_does(tmp_path: Path, tied: bool, codec: str) -> None:
    """Of a model that fits and of one that streams: the same bytes stay, pass, and are read."""
    shape = {"layers": 4, "hidden": 256, "ffn": 2048, "heads": 8, "kv_heads": 4, "vocab": 3000}
    folder = tiny.model_dir(tmp_path, dtype="q8", codec=codec, tied=tied, **shape)
    floor = plan_model(folder, LoadOptions("1GB", 64)).smallest_budget
    for budget in (10**9, floor + 500_000, floor):
        options = LoadOptions(budget, 64, threads=1)
        plan = plan_model(folder, options)
        decoder = load_decoder(folder, options)
        try:
            assert plan.resident_bytes == decoder.resident_bytes
            assert plan.scratch_bytes == decoder.scratch_bytes
            sequence = decoder.new_sequence(64)
            decoder.step(sequence, [5])
            before = decoder.traffic
            decoder.step(sequence, [6])
            read = decoder.traffic - before
        finally:
            decoder.close()
        assert read.used_bytes == plan.used_bytes
        # A row may lie in a unit that is there already.
        assert plan.streamed_bytes * 0.9 <= read.read_bytes <= plan.streamed_bytes * 1.1
        assert plan.streams == (budget < 10**9)
    with pytest.raises(OutOfBudget):
        load_decoder(folder, LoadOptions(floor - 1, 64, threads=1))


def test_what_is_no_model_cannot_be_planned(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(CorruptModel):
        plan_checkpoint(tmp_path / "m.gguf", SIX)


@pytest.mark.parametrize(
    ("quant", "dtypes"),
    [
        ("Q8_0", {"q8"}),
        ("Q4_K_S", {"q8"}),  # none of its rows is a multiple of 256
        ("Q4_0", {"q4", "q8"}),
        ("IQ4_XS", {"q8"}),
        ("q4", {"q4", "q8"}),  # q8 is the head
        ("BF16", {"bf16"}),
    ],
)
def test_a_shape_alone_makes_a_plan(tmp_path: Path, quant: str, dtypes: set[str]) -> None:
    config = understand(open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", **SHAPE))).config
    assert set(guess_dtypes(config, quant).values()) == dtypes
    plan = plan_shape("known", config, quant, SIX, fetched=1000)
    assert plan.disk_bytes == plan.stored_bytes + 1000
    assert plan.warnings


def test_a_mixture_has_more_bits_where_llama_cpp_puts_them(tmp_path: Path) -> None:
    path = tiny.write_gguf(tmp_path / "m.gguf", layers=16, hidden=256, ffn=256)
    guessed = guess_dtypes(understand(open_checkpoint(path)).config, "Q4_K_M")
    wide = [i for i in range(16) if guessed[f"layers.{i}.ffn_down"] == "q8"]
    assert wide == [0, 1, 4, 7, 10, 13, 14, 15]
    assert guessed["embed"] == "q8"  # the head is tied to it
    assert guessed["layers.0.ffn_up"] == "q4m"
    config = understand(open_checkpoint(path)).config
    assert guess_dtypes(config, "UD-Q4_K_M") == guessed
    assert set(guess_dtypes(config, "Q4_K_S").values()) == {"q4m", "q8"}


def test_unknown_quantisations_are_refused(tmp_path: Path) -> None:
    config = understand(open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf"))).config
    with pytest.raises(UnsupportedModel, match="'IQ2_M' is not known"):
        plan_shape("known", config, "IQ2_M", SIX)
