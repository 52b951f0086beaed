"""Models rewritten with their neurons in another order: the same network, and predictors of it."""

from __future__ import annotations

import dataclasses
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import streamed
import tiny
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from unpacking import read_panels

from flashllm.convert import copying, rewriting, verify
from flashllm.convert.plan import predictor_plan
from flashllm.convert.planning import plan_model
from flashllm.convert.predictor import Predictor
from flashllm.convert.rewriting import rewrite
from flashllm.errors import CorruptModel, FlashError, InvalidInput, UnsupportedModel
from flashllm.flash import layout
from flashllm.flash.format import FlashModel, read_manifest, read_model, read_small
from flashllm.flash.manifest import FileEntry
from flashllm.flash.parts import FFNPart
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

LAYERS, HIDDEN, NEURONS = streamed.LAYERS, 64, 192
TOKENS = [3, 1999, 41, 41, 7, 260, 3]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of codec row, of OPT's kind: without gates, with biases."""
    return streamed.write(tmp_path_factory.mktemp("opt") / "m", codec="row", positions=True)


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of codec row, of Llama's kind: with gates, without biases."""
    return streamed.write(tmp_path_factory.mktemp("llama") / "m", codec="row")


@pytest.fixture(params=["source", "gated"])
def either(request: pytest.FixtureRequest) -> Path:
    """Each of the two."""
    return Path(request.getfixturevalue(request.param))


def orders(seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(NEURONS) for _ in range(LAYERS)]


def predictor(rank: int = 32, seed: int = 2) -> Predictor:
    rng = np.random.default_rng(seed)
    shapes = ((rank, HIDDEN), (NEURONS, rank), (NEURONS,))
    return Predictor(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))


def figures(predictors: list[Predictor | None]) -> dict[str, Any]:
    shares = {"recall": 0.97, "false_positives": 0.05, "active": 0.5, "predicted": 0.6}
    return {
        "text_tokens": 1000,
        "order": "coactivation",
        "layers": [{"rank": len(p.down) if p else 0, **shares} for p in predictors],
        "window": [0.5] * 33,
        "resident": [1.0] * 33,
    }


def rewritten(
    model: FlashModel,
    target: Path,
    orders: list[np.ndarray | None] | None = None,
    predictors: list[Predictor | None] | None = None,
    **options: Any,
) -> FlashModel:
    predictors = predictors or [None] * LAYERS
    folder = rewrite(
        model,
        target,
        orders=orders or [None] * LAYERS,
        predictors=predictors,
        sparsity=figures(predictors),
        **options,
    )
    assert folder == target
    verify(folder)
    return read_model(folder)


def records(model: FlashModel, layer: int) -> list[bytes]:
    """Each neuron's record, in the order of the file."""
    group = model.group(f"layers.{layer}.ffn")
    part = group.part("ffn")
    assert isinstance(part, FFNPart)
    raw = (model.path / group.file).read_bytes()
    whole = b""
    for offset, length in zip(group.offsets.tolist(), group.lengths.tolist(), strict=False):
        whole += raw[group.file_offset + offset : group.file_offset + offset + length]
    return [whole[i : i + part.grain_bytes] for i in range(0, len(whole), part.grain_bytes)]


def group_bytes(model: FlashModel, name: str) -> bytes:
    group = model.group(name)
    raw = (model.path / group.file).read_bytes()
    return raw[group.file_offset : group.file_offset + int(group.offsets[-1])]


def logits(folder: Path) -> np.ndarray:
    """Of a prompt and of single tokens after it, computed densely.

    Keys and values are kept in f32: in f16, the last bit of a sum can become one of a half.
    """
    decoder = load_decoder(folder, LoadOptions(threads=1, kv_dtype="f32"))
    try:
        sequence = decoder.new_sequence(32)
        rows = [decoder.step(sequence, TOKENS).copy()]
        rows += [decoder.step(sequence, [token]).copy() for token in (5, 6)]
        return np.concatenate([np.atleast_2d(row) for row in rows])
    finally:
        decoder.close()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, gathers and reports of a few units."""
    monkeypatch.setattr(copying, "READ_BYTES", 50_000)
    monkeypatch.setattr(copying, "GATHER_BYTES", 30_000)
    monkeypatch.setattr(rewriting, "REPORT_BYTES", 30_000)


def test_neurons_take_their_new_places(either: Path, tmp_path: Path, small_pieces: None) -> None:
    before, chosen = read_model(either), orders()
    after = rewritten(before, tmp_path / "new", [*chosen[:-1], None])
    small, former = read_small(after.path), read_small(either)
    assert list(after.groups) == list(before.groups)
    for i, order in enumerate([*chosen[:-1], np.arange(NEURONS)]):
        had = records(before, i)
        assert records(after, i) == [had[neuron] for neuron in order]
        for role in (f"layers.{i}.ffn_up_bias", f"layers.{i}.ffn_gate_bias"):
            assert (role in former) == (role in small)
            if role in former:
                np.testing.assert_array_equal(small.pop(role), former.pop(role)[order])
    for name in before.groups:
        if not name.endswith("ffn"):
            assert group_bytes(after, name) == group_bytes(before, name)
    assert small.keys() == former.keys()
    assert all(np.array_equal(small[role], former[role]) for role in small)


def test_the_network_is_the_same(either: Path, tmp_path: Path) -> None:
    model = read_model(either)
    before = logits(either)
    same = rewritten(model, tmp_path / "same", None, [predictor()] * LAYERS)
    np.testing.assert_array_equal(logits(same.path), before)
    other = rewritten(model, tmp_path / "other", [*orders()], [predictor()] * LAYERS)
    after = logits(other.path)
    assert not np.array_equal(after, before)  # sums in another order
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


def test_orders_compose(source: Path, tmp_path: Path) -> None:
    model, first, second = read_model(source), orders(1), orders(2)
    once = rewritten(model, tmp_path / "once", [*first])
    twice = rewritten(once, tmp_path / "twice", [*second])
    at_once = [a[b] for a, b in zip(first, second, strict=True)]
    direct = rewritten(model, tmp_path / "direct", [*at_once])
    for name in model.groups:
        assert group_bytes(twice, name) == group_bytes(direct, name)
    assert (twice.path / "small.safetensors").read_bytes() == (
        direct.path / "small.safetensors"
    ).read_bytes()


def test_units_get_the_size_of_today(tmp_path: Path) -> None:
    """Whatever number of neurons the units held, and however much padding was after each."""
    model = read_model(streamed.write(tmp_path / "old", codec="row"))
    expected = records(model, 3)
    for step, (nbytes, per_unit) in enumerate(((5000, 7), (None, 22), (None, 22), (1, 1))):
        chosen = orders(step)[3] if step < 2 else None
        with pytest.MonkeyPatch.context() as patch:
            if nbytes:
                patch.setattr(layout, "ROW_UNIT", nbytes)
            target = tmp_path / f"step {step}"
            model = rewritten(model, target, [None, None, None, chosen, None])
        part = model.group("layers.3.ffn").part("ffn")
        assert isinstance(part, FFNPart)
        assert part.neurons_per_unit == per_unit
        if chosen is not None:
            expected = [expected[neuron] for neuron in chosen]
        assert records(model, 3) == expected


def test_predictors_are_q8_matrices_after_everything_else(source: Path, tmp_path: Path) -> None:
    made = [predictor(32 + 32 * (i % 2), i) if i != 2 else None for i in range(LAYERS)]
    model = rewritten(read_model(source), tmp_path / "new", None, made)
    named = [f"layers.{i}.predictor" for i in range(LAYERS) if i != 2]
    assert list(model.groups)[-len(named) :] == named
    small = read_small(model.path)
    for i, predicted in enumerate(made):
        if predicted is None:
            assert f"layers.{i}.predictor_bias" not in small
            continue
        group = model.group(f"layers.{i}.predictor")
        assert group.parts == predictor_plan(i, len(predicted.down), HIDDEN, NEURONS).parts
        assert [part.role for part in group.parts] == ["predictor_down", "predictor_up"]
        np.testing.assert_array_equal(small[f"layers.{i}.predictor_bias"], predicted.bias)
        raw = group_bytes(model, group.name)
        for part, values in zip(group.parts, (predicted.down, predicted.up), strict=True):
            first, end = part.first_unit, part.first_unit + part.units
            data = b"".join(
                raw[int(group.offsets[unit]) :][: int(group.lengths[unit])]
                for unit in range(first, end)
            )
            rows, cols = values.shape
            stored = read_panels(data, "q8", -(-rows // 16), -(-cols // 32))[:rows, :cols]
            np.testing.assert_array_equal(stored, rounded(values))


def rounded(values: np.ndarray) -> np.ndarray:
    """What q8 makes of a matrix: whole multiples of a 127th of the largest of each 32."""
    groups = values.reshape(len(values), -1, 32)
    scales = (np.abs(groups).max(-1, keepdims=True) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)
    levels = np.rint(groups * (np.float32(1) / wide)).clip(-127, 127)
    return np.asarray((levels * wide).reshape(values.shape), np.float32)


def test_a_model_with_predictors_gets_new_ones(source: Path, tmp_path: Path) -> None:
    model = read_model(source)
    first = rewritten(model, tmp_path / "first", None, [predictor()] * LAYERS)
    made = [None, *[predictor(64, 9)] * (LAYERS - 1)]
    second = rewritten(first, tmp_path / "second", [*orders()], made)
    direct = rewritten(model, tmp_path / "direct", [*orders()], made)
    for file in direct.path.iterdir():
        assert (second.path / file.name).read_bytes() == file.read_bytes()
    assert "layers.0.predictor" not in second.groups


def test_provenance_and_other_files_are_kept(tmp_path: Path) -> None:
    folder = tiny.model_dir(tmp_path, "q8", codec="row", layers=LAYERS, ffn=NEURONS)
    model = read_model(folder)
    new = rewritten(model, tmp_path / "new", [*orders()], [predictor()] * LAYERS)
    before, after = model.manifest, new.manifest
    for name in ("name", "config", "codec", "dtype", "source", "licence", "loss"):
        assert getattr(after, name) == getattr(before, name)
    assert after.source["format"] == "gguf"
    assert after.loss
    assert after.sparsity == figures([predictor()] * LAYERS)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (new.path / file).read_bytes() == (folder / file).read_bytes()
    listed = {path.name for path in new.path.iterdir()}
    assert listed == set(after.files) | {"manifest.json"}


def test_the_plan_counts_predictors(source: Path, tmp_path: Path) -> None:
    options = LoadOptions("6GB")
    model = read_model(source)
    new = rewritten(model, tmp_path / "new", None, [predictor(64)] * LAYERS)
    added = sum(int(new.group(f"layers.{i}.predictor").lengths.sum()) for i in range(LAYERS))
    panels = 64 // 16 * 2 + NEURONS // 16 * 2  # each of two tiles
    assert added == LAYERS * panels * 544
    before, after = plan_model(source, options), plan_model(new.path, options)
    assert after.weight_bytes == before.weight_bytes + added
    assert after.stored_bytes == sum(entry.nbytes for entry in new.manifest.files.values())


def test_in_place(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "m"))
    model = read_model(folder)
    with pytest.raises(InvalidInput, match="exists already"):
        rewritten(model, folder)
    had = records(model, 1)
    order = orders()[1]
    new = rewritten(model, folder, [None, order, None, None, None], overwrite=True)
    assert records(new, 1) == [had[neuron] for neuron in order]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_progress_is_in_bytes(source: Path, tmp_path: Path, small_pieces: None) -> None:
    seen: list[tuple[int, int]] = []
    new = rewritten(
        read_model(source),
        tmp_path / "new",
        [*orders()],
        [predictor()] * LAYERS,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert {total for _, total in seen} == {new.unit_bytes}
    done = [place for place, _ in seen]
    assert done == sorted(set(done))
    assert done[-1] == new.unit_bytes
    assert len(done) > 20


@pytest.mark.parametrize("after", [0.0, 0.3, 0.99])
def test_an_interrupted_rewrite_leaves_nothing(
    source: Path, tmp_path: Path, small_pieces: None, after: float
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= after * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewritten(read_model(source), tmp_path / "new", [*orders()], on_progress=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["embed", "layers.2.attn", "layers.2.ffn"])
def test_damage_is_found_and_leaves_nothing(source: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "m"))
    model = read_model(folder)
    group = model.group(name)
    with (folder / group.file).open("r+b") as file:
        file.seek(group.file_offset + int(group.offsets[1]))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    with pytest.raises(CorruptModel, match=f"unit 1 of '{name}' fails its checksum"):
        rewritten(model, tmp_path / "new", [*orders()])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    folder = tiny.model_dir(tmp_path, "f16", codec="row", layers=LAYERS, ffn=NEURONS)
    model = read_model(folder)
    (folder / "chat_template.jinja").write_text("{{ other }}")
    with pytest.raises(CorruptModel, match=r"chat_template\.jinja: fails its checksum"):
        rewritten(model, tmp_path / "new")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(FlashError, match=r"chat_template\.jinja: cannot read"):
        rewritten(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_tiles_are_refused(tmp_path: Path) -> None:
    model = read_model(streamed.write(tmp_path / "m"))
    with pytest.raises(UnsupportedModel, match="convert the checkpoint with --codec row"):
        rewritten(model, tmp_path / "new")


def test_a_model_that_contradicts_itself(tmp_path: Path) -> None:
    folder = streamed.write(tmp_path / "m", codec="row", positions=True)
    model = read_model(folder)
    config = {**model.manifest.config, "hidden_size": 2 * HIDDEN}
    lying = dataclasses.replace(model, manifest=dataclasses.replace(model.manifest, config=config))
    with pytest.raises(CorruptModel, match=r"layers\.0\.ffn does not have the shape"):
        rewritten(lying, tmp_path / "new")

    vectors = read_small(folder)
    vectors["layers.1.ffn_up_bias"] = vectors["layers.1.ffn_up_bias"][:-1]
    data = safetensors.numpy.save(vectors)
    entry = FileEntry(len(data), xxhash.xxh3_64_hexdigest(data))
    files = {**model.manifest.files, "small.safetensors": entry}
    (folder / "small.safetensors").write_bytes(data)
    signed = dataclasses.replace(model.manifest, files=files).to_bytes()
    (folder / "manifest.json").write_bytes(signed)
    with pytest.raises(CorruptModel, match=r"layers\.1\.ffn_up_bias' is not of 192 neurons"):
        rewritten(read_model(folder), tmp_path / "new", [*orders()])
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def wrong_orders() -> dict[str, tuple[Any, str]]:
    sound = orders()
    twice, short = sound[0].copy(), sound[0][:-1]
    twice[3] = twice[4]
    return {
        "too few": (sound[:-1], "4 orders of neurons for 5 layers"),
        "twice": ([twice, *sound[1:]], "layer 0 does not hold each of its 192"),
        "short": ([*sound[:2], short, *sound[3:]], "layer 2 does not"),
        "fractions": ([*sound[:4], sound[4] + 0.0], "layer 4 does not"),
        "a matrix": ([sound[0][:, None], *sound[1:]], "layer 0 does not"),
    }


@pytest.mark.parametrize("case", wrong_orders())
def test_orders_that_are_none(source: Path, tmp_path: Path, case: str) -> None:
    chosen, message = wrong_orders()[case]
    with pytest.raises(InvalidInput, match=message):
        rewritten(read_model(source), tmp_path / "new", chosen)


def wrong_predictors() -> dict[str, tuple[Any, str]]:
    sound = predictor()
    odd = Predictor(sound.down[:31], sound.up[:, :31], sound.bias)
    endless = Predictor(sound.down, sound.up, sound.bias * np.float32(np.inf))
    none = Predictor(sound.down[:0], sound.up[:, :0], sound.bias)
    return {
        "too few": ([sound] * 4, "4 predictors for 5 layers"),
        "odd rank": ([odd] * LAYERS, "layer 0 has shapes .* 32 divides"),
        "no rank": ([none] * LAYERS, "layer 0 has shapes"),
        "turned": ([Predictor(sound.up, sound.down, sound.bias)] * LAYERS, "has shapes"),
        "not finite": ([None, endless, None, None, None], "layer 1 holds NaN or infinite"),
    }


@pytest.mark.parametrize("case", wrong_predictors())
def test_predictors_that_do_not_fit(source: Path, tmp_path: Path, case: str) -> None:
    made, message = wrong_predictors()[case]
    with pytest.raises(InvalidInput, match=message):
        rewritten(read_model(source), tmp_path / "new", None, made)


def test_figures_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    model, nothing = read_model(source), [None] * LAYERS
    lies = (
        (figures([predictor(), *nothing[1:]]), "says ranks .32, 0, 0, 0, 0., the predictors have"),
        (figures(nothing[1:]), "describes 4 layers"),
        ({}, "keys"),
    )
    for figure, message in lies:
        with pytest.raises(InvalidInput, match=f"sparsity.*{message}"):
            rewrite(model, tmp_path / "new", orders=nothing, predictors=nothing, sparsity=figure)
    assert not list(tmp_path.iterdir())


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_orders(source: Path, tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """And sizes of reads: every record is where its order puts it."""
    model = read_model(source)
    seeds = data.draw(st.lists(st.none() | st.integers(0, 99), min_size=LAYERS, max_size=LAYERS))
    chosen = [None if s is None else orders(s)[0] for s in seeds]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "READ_BYTES", data.draw(st.integers(1, 200_000)))
        patch.setattr(copying, "GATHER_BYTES", data.draw(st.integers(1, 200_000)))
        new = rewritten(model, tmp_path_factory.mktemp("any") / "new", chosen)
    for i, order in enumerate(chosen):
        had = records(model, i)
        assert records(new, i) == (had if order is None else [had[n] for n in order])


def test_the_source_is_only_read(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "m"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~stat.S_IWUSR)
    try:
        rewritten(read_model(folder), tmp_path / "new", [*orders()])
    finally:
        folder.chmod(0o755)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert read_manifest(folder).sparsity is None
    small = safetensors.numpy.load_file(tmp_path / "new" / "small.safetensors")
    assert all(vector.dtype == np.float32 for vector in small.values())
