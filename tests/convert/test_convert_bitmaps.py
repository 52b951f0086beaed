"""Pruned checkpoints converted to bitmaps: smaller, and the same model to the bit."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from damage import edit_unit

from flashllm.convert import convert, units, verify
from flashllm.convert.planning import plan_model
from flashllm.errors import Cancelled, CorruptModel, InvalidInput
from flashllm.flash import writer
from flashllm.flash.format import read_model
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

SHAPE: dict[str, Any] = {"layers": 3, "hidden": 128, "ffn": 704, "heads": 4}
TOKENS = list(range(3, 43))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six tenths of it are zero."""
    return tiny.write_gguf(tmp_path_factory.mktemp("gguf") / "pruned.gguf", sparsity=0.6, **SHAPE)


def logits(model: Path, **options: Any) -> np.ndarray:
    """One token after another, then all at once."""
    decoder = load_decoder(model, LoadOptions(**{"mem_budget": None, "n_ctx": 64, **options}))
    sequence = decoder.new_sequence(64)
    found = [decoder.step(sequence, [token])[-1] for token in TOKENS[:5]]
    sequence.truncate(0)
    found += list(decoder.step(sequence, TOKENS, logits="all"))
    decoder.close()
    return np.array(found)


def codecs_of(model: Path) -> set[str]:
    groups = read_model(model).groups
    return {p.codec for name, g in groups.items() if name.startswith("layers.") for p in g.parts}


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8", "q4"])
def test_the_same_model_under_any_budget(tmp_path: Path, checkpoint: Path, dtype: str) -> None:
    dense = convert(checkpoint, tmp_path / "dense", dtype=dtype)
    sparse = convert(checkpoint, tmp_path / "sparse", dtype=dtype, sparse_min=0.4)
    assert codecs_of(dense) == {"tile"}
    assert codecs_of(sparse) == {"bitmap"}
    expected = {"f16": 0.40 + 1 / 16, "bf16": 0.40 + 1 / 16, "q8": 0.40 + 3 / 17, "q4": 0.70}
    layers = [
        sum(int(g.lengths.sum()) for name, g in read_model(m).groups.items() if "layers" in name)
        for m in (sparse, dense)
    ]
    assert abs(layers[0] / layers[1] - expected[dtype]) < 0.05
    reference = logits(dense)
    decoder = load_decoder(sparse, LoadOptions(mem_budget=None, n_ctx=64))
    sequence = decoder.new_sequence(64)
    least = decoder.least_budget(kv=sequence.nbytes)
    decoder.close()
    for budget in (None, least, least + 200_000):
        for threads in (1, 2):
            assert np.array_equal(logits(sparse, mem_budget=budget, threads=threads), reference)
    for io in ("direct", "pread", "mmap"):
        assert np.array_equal(logits(sparse, mem_budget=least, io=io), reference)
    assert verify(sparse).units == sum(g.units for g in read_model(sparse).groups.values())


def test_its_plan_is_what_happens(tmp_path: Path, checkpoint: Path) -> None:
    model = convert(checkpoint, tmp_path / "m", dtype="q8", sparse_min=0.4)
    options = LoadOptions(mem_budget=10**9, n_ctx=64, threads=2)
    plan = plan_model(model, options)
    groups = read_model(model).groups
    layers = sum(int(g.lengths.sum()) for name, g in groups.items() if "layers" in name)
    assert plan.bitmap_bytes == layers < plan.used_bytes
    tile = plan_model(convert(checkpoint, tmp_path / "t", dtype="q8"), options)
    assert tile.bitmap_bytes == 0
    # Fewer bytes, each of which takes longer than one of a tile; then that is all that counts.
    speeds = [one.tok_s_at(1e15, 1e9) for one in (plan, tile)]
    assert 1 < speeds[0] / speeds[1] < tile.used_bytes / plan.used_bytes
    decoder = load_decoder(model, options)
    assert plan.scratch_bytes == decoder.scratch_bytes
    decoder.close()


def test_expanding_takes_what_was_planned(tmp_path: Path, checkpoint: Path) -> None:
    """A panel of tiles for each thread and each of the sizes that there are."""
    options = LoadOptions(mem_budget=None, n_ctx=64, threads=3)
    found = []
    for name, sparse_min in (("tile", None), ("bitmap", 0.4)):
        model = convert(checkpoint, tmp_path / name, dtype="f16", sparse_min=sparse_min)
        load_decoder(model, options).close()  # what stays for the next one is not this one's
        tracemalloc.start()
        decoder = load_decoder(model, options)
        found.append((tracemalloc.get_traced_memory()[0], decoder.scratch_bytes))
        tracemalloc.stop()
        decoder.close()
    (tiles, without), (bitmaps, with_room) = found
    assert with_room > without
    assert abs((bitmaps - tiles) - (with_room - without)) < 50_000


def test_what_is_not_sparse_enough_stays_as_it_was(tmp_path: Path, checkpoint: Path) -> None:
    assert codecs_of(convert(checkpoint, tmp_path / "a", sparse_min=0.7)) == {"tile"}
    dense = tiny.write_gguf(tmp_path / "dense.gguf", dtype="Q8_0")
    assert codecs_of(convert(dense, tmp_path / "b", sparse_min=0.0)) == {"tile"}
    # With a minimum no code is zero.
    assert codecs_of(convert(checkpoint, tmp_path / "c", dtype="q4m", sparse_min=0)) == {"tile"}
    with pytest.raises(InvalidInput, match="sparsity of 2"):
        convert(checkpoint, tmp_path / "d", sparse_min=2)
    with pytest.raises(InvalidInput, match="codec tile"):
        convert(checkpoint, tmp_path / "d", codec="row", sparse_min=0.5)


def test_interrupted_at_any_step(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    monkeypatch.setattr(units, "JOB_WEIGHTS", 1 << 15)
    options: dict[str, Any] = {"dtype": "q8", "sparse_min": 0.4}
    steps: list[tuple[int, int]] = []
    whole = convert(
        checkpoint, tmp_path / "whole", on_progress=lambda *at: steps.append(at), **options
    )
    for stop in range(0, len(steps), 7):
        target = tmp_path / f"stopped-{stop}"
        left = iter(range(stop))

        def on_progress(done: int, total: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise Cancelled("stop")

        with pytest.raises(Cancelled):
            convert(checkpoint, target, on_progress=on_progress, **options)
        convert(checkpoint, target, **options)
        for file in whole.iterdir():
            assert (target / file.name).read_bytes() == file.read_bytes()


def test_bitmaps_that_lie_are_refused_before_a_kernel_has_them(
    tmp_path: Path, checkpoint: Path
) -> None:
    model = convert(checkpoint, tmp_path / "m", dtype="f16", sparse_min=0.4)

    def more_bits(unit: np.ndarray) -> None:
        unit[8:72] = 255

    def other_place(unit: np.ndarray) -> None:
        unit[:8].view(np.int64)[0] += 4096

    for group in ("layers.1.attn", "layers.1.ffn"):
        for lie in (more_bits, other_place):
            edit_unit(model, group, 0, lie)
            with pytest.raises(CorruptModel, match=r"unit 0 of .layers\.1"):
                logits(model)
            with pytest.raises(CorruptModel, match="damaged"):
                verify(model)
