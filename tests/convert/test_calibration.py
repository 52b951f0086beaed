"""Calibration of a tiny random model: end to end, stopped and gone on with, and its parts."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import streamed
import tiny
from convert_planted import linear_layer
from hypothesis import given, settings
from hypothesis import strategies as st
from unpacking import read_row

from flashllm.convert import calibration, layer_calibration, predictor_fit
from flashllm.convert.activity import ActivityFile, Recorder, Shape
from flashllm.convert.calibration import Calibration, calibrate, split
from flashllm.convert.calibration_scratch import (
    ACTIVITY_FILE,
    STATE_FILE,
    Scratch,
    scratch_folder,
)
from flashllm.convert.calibration_text import read_windows
from flashllm.convert.layer_calibration import Aims, calibrate_layer
from flashllm.convert.neuron_rows import deciding_bias, deciding_rows, row_part, unpack_rows
from flashllm.convert.predictor import quality
from flashllm.errors import (
    Cancelled,
    EngineError,
    InvalidInput,
    UnsupportedModel,
)
from flashllm.flash import layout
from flashllm.flash.codecs import pack_rows
from flashllm.flash.format import read_model, read_small
from flashllm.flash.layout import row_bytes
from flashllm.flash.quantize import dequantize, quantize
from flashllm.flash.reader import UnitReader
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

OPTIONS = LoadOptions(mem_budget=None, threads=1)


@pytest.fixture(autouse=True, scope="module")
def little_work() -> Iterator[None]:
    """Fit in one pass, and count reads without a window, so that an order shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor_fit, "EPOCHS", 1)
        patch.setattr(layer_calibration, "WINDOW", 0)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of OPT's kind, of codec row, with the tiny tokeniser."""
    folder = tmp_path_factory.mktemp("relu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "ROW_UNIT", 1)  # a neuron a unit
        path = streamed.write(folder / "model", codec="row", positions=True)
    for file in tiny.model_dir(folder).glob("*token*"):
        shutil.copy(file, path / file.name)
    return path


@pytest.fixture(scope="module")
def text(model: Path) -> Path:
    """A text of a few hundred tokens."""
    path = model.parent / "text.txt"
    path.write_text(tiny.CORPUS * 3)
    return path


@dataclasses.dataclass
class Run:
    """A calibration that nothing stopped: what was found and told."""

    found: Calibration
    told: list[str]
    progress: list[tuple[int, int]]


@pytest.fixture(scope="module")
def whole(model: Path, text: Path) -> Run:
    """The model, calibrated into a folder of its own."""
    told: list[str] = []
    progress: list[tuple[int, int]] = []
    target = model.parent / "whole" / "new"
    found = run(
        model,
        target,
        text,
        on_message=told.append,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    return Run(found, told, progress)


def run(model: Path, target: Path, text: Path, **options: Any) -> Calibration:
    """Calibrate with little work."""
    options = {"tokens": 190, "rank": 32, "options": OPTIONS, **options}
    return calibrate(model, target, [text], **options)


def test_a_model_is_calibrated(whole: Run) -> None:
    found = whole.found
    assert [line.split()[0] for line in whole.told] == ["running", "fitting", "writing"]
    assert all(0 <= done <= total for done, total in whole.progress)
    assert [path.name for path in found.path.parent.iterdir()] == ["new"]
    sparsity = read_model(found.path).manifest.sparsity
    assert sparsity is not None
    assert sparsity["text_tokens"] == found.text_tokens
    assert len(sparsity["layers"]) == streamed.LAYERS
    for layer, told_of in zip(found.layers, sparsity["layers"], strict=True):
        assert told_of == {"rank": 32, **vars(layer.quality)}
        assert layer.quality.recall >= 0.97
        assert 0.2 < layer.quality.active < 0.8


def test_the_dense_results_stay(model: Path, whole: Run) -> None:
    assert any(layer.order is not None for layer in whole.found.layers)
    logits = []
    for path in (model, whole.found.path):
        decoder = load_decoder(path, OPTIONS)
        sequence = decoder.new_sequence(40)
        logits.append(decoder.step(sequence, np.arange(40), logits="all"))
        sequence.close()
        decoder.close()
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-3, atol=1e-4)


def test_what_was_collected_is_what_the_rows_say(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The neurons that fire are those where row @ x + bias > 0, but for rounding x to float16."""
    samples = []
    real = layer_calibration.calibrate_layer

    def spy(sample: Any, *rest: Any) -> Any:
        samples.append(sample)
        return real(sample, *rest)

    monkeypatch.setattr(calibration, "calibrate_layer", spy)
    run(model, tmp_path / "new", text, order="none")
    assert len(samples) == streamed.LAYERS
    for sample in samples:
        tokens = np.arange(len(sample.activity.x))
        sums = sample.activity.inputs(tokens) @ sample.rows.T + sample.bias
        clear = np.abs(sums) > 0.02
        assert clear.mean() > 0.9
        assert np.array_equal(sample.activity.firing(tokens)[clear], (sums > 0)[clear])
        assert sorted([*sample.train, *sample.held]) == list(range(len(tokens)))


@pytest.mark.parametrize("stage", ["running", "fitting", "writing"])
def test_a_stopped_calibration_goes_on(
    model: Path, text: Path, whole: Run, tmp_path: Path, stage: str
) -> None:
    stages: list[str] = []

    def stop(done: int, total: int) -> None:
        if stages[-1].startswith(stage) and done * 2 >= total:
            raise Cancelled("stop")

    target = tmp_path / "new"
    with pytest.raises(Cancelled):
        run(model, target, text, on_message=stages.append, on_progress=stop)
    assert not target.exists()
    assert scratch_folder(target).exists()
    again: list[str] = []
    counted: list[int] = []
    found = run(
        model,
        target,
        text,
        on_message=again.append,
        on_progress=lambda done, total: counted.append(done),
    )
    assert (again[0].split()[0] == "running") == (stage == "running")
    assert counted[0] > 0
    assert not scratch_folder(target).exists()
    for one, other in zip(found.layers, whole.found.layers, strict=True):
        assert np.array_equal(one.predictor.up, other.predictor.up)
        assert one.quality == other.quality
    for file in ("manifest.json", "small.safetensors"):
        assert (target / file).read_bytes() == (whole.found.path / file).read_bytes()


def test_other_aims_fit_anew_but_do_not_run_again(model: Path, text: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def stop(done: int, total: int) -> None:
        if stages[-1].startswith("writing"):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(model, tmp_path / "new", text, on_message=stages.append, on_progress=stop)
    again: list[str] = []
    found = run(model, tmp_path / "new", text, recall=0.9, on_message=again.append)
    assert again[0].startswith("fitting")
    assert all(0.9 <= layer.quality.recall < 0.95 for layer in found.layers)


def test_or_it_starts_over(model: Path, text: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Cancelled("stop")

    again: list[int] = []
    with pytest.raises(Cancelled):
        run(model, tmp_path / "new", text, on_progress=stop)
    with pytest.raises(Cancelled):
        run(
            model,
            tmp_path / "new",
            text,
            restart=True,
            on_progress=lambda done, total: again.append(done) or stop(done, total),
        )
    assert again == [96], "the first window was not run again"


def test_a_damaged_note_of_what_is_done_counts_as_none(
    model: Path, text: Path, tmp_path: Path
) -> None:
    stages: list[str] = []

    def stop(done: int, total: int) -> None:
        if stages[-1].startswith("fitting"):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(model, tmp_path / "new", text, on_message=stages.append, on_progress=stop)
    (scratch_folder(tmp_path / "new") / STATE_FILE).write_bytes(b'{"windows": 2')
    stages.clear()
    with pytest.raises(Cancelled):
        run(model, tmp_path / "new", text, on_message=stages.append, on_progress=stop)
    assert stages[0].startswith("running")


def test_a_damaged_layer_is_fitted_anew(model: Path, text: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    def stop(done: int, total: int) -> None:
        if stages[-1].startswith("writing"):
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(model, tmp_path / "new", text, on_message=stages.append, on_progress=stop)
    for i, file in enumerate(sorted(scratch_folder(tmp_path / "new").glob("layer-*"))):
        data = file.read_bytes()
        file.write_bytes(data[: len(data) * i // 5])
    found = run(model, tmp_path / "new", text)
    assert all(layer.quality.recall >= 0.97 for layer in found.layers)


def test_models_without_neurons_to_predict_are_refused(text: Path, tmp_path: Path) -> None:
    silu = tiny.model_dir(tmp_path, codec="row")
    with pytest.raises(UnsupportedModel, match="silu"):
        run(silu, tmp_path / "new", text)
    tiles = streamed.write(tmp_path / "tiles", positions=True)
    with pytest.raises(UnsupportedModel, match="--codec row"):
        run(tiles, tmp_path / "new", text)


def test_what_cannot_be_asked_for(model: Path, text: Path, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"recall": 0.0},
        {"recall": 1.5},
        {"rank": 33},
        {"rank": 0},
        {"rank": 128},  # layers are 64 wide
        {"order": "random"},
        {"tokens": 0},
    ]
    for options in wrong:
        with pytest.raises(InvalidInput):
            run(model, tmp_path / "new", text, **options)
    (tmp_path / "there").mkdir()
    with pytest.raises(InvalidInput, match="exists"):
        run(model, tmp_path / "there", text)
    with pytest.raises(InvalidInput, match="no file"):
        run(model, tmp_path / "new", tmp_path / "missing.txt")
    (tmp_path / "short.txt").write_text("the capital")
    with pytest.raises(InvalidInput, match="more text"):
        run(model, tmp_path / "new", tmp_path / "short.txt")
    assert not scratch_folder(tmp_path / "new").exists()


# ---------------------------------------------------------------- parts


def test_the_cheapest_rank_is_taken() -> None:
    part = row_part_of(192, 64)
    runs = [np.arange(1080, 1200)]
    low = calibrate_layer(linear_layer(inner=20), runs, part, Aims(0.95, None, "none"), ignore)
    assert low.predictor.rank == 32, "inputs of rank 20 need no more"
    high = calibrate_layer(linear_layer(), runs, part, Aims(0.95, None, "none"), ignore)
    assert high.predictor.rank == 64
    assert low.order is None


def test_an_order_and_its_predictor_agree() -> None:
    sample, runs = linear_layer(), [np.arange(1080, 1200)]
    part = row_part_of(192, 64)
    plain = calibrate_layer(sample, runs, part, Aims(0.95, 64, "none"), ignore)
    ordered = calibrate_layer(sample, runs, part, Aims(0.95, 64, "coactivation"), ignore)
    assert ordered.order is not None
    x = sample.activity.inputs(sample.held)
    predicted = ordered.predictor.fires(x)
    assert np.array_equal(predicted, plain.predictor.fires(x)[:, ordered.order])
    fired = sample.activity.firing(sample.held)[:, ordered.order]
    assert quality(predicted, fired) == ordered.quality


def row_part_of(neurons: int, width: int) -> Any:
    """A feed-forward whose units hold one neuron."""
    from flashllm.flash.parts import FFNPart

    return FFNPart("ffn", "row", None, "f16", "f16", neurons, width, 1, 0, neurons)


def ignore(share: float) -> None:
    """Hear nothing."""


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8", "q4", "q4m"])
@pytest.mark.parametrize("width", [64, 96])
def test_rows_are_unpacked_as_the_format_says(dtype: str, width: int) -> None:
    weights = np.random.default_rng(5).standard_normal((7, width)).astype(np.float32)
    stored = quantize(weights, dtype)
    packed = pack_rows(stored)
    assert packed.shape[1] == row_bytes(dtype, width)
    found = unpack_rows(packed, width, dtype)
    assert np.array_equal(found, dequantize(stored))
    slow = [read_row(row.tobytes(), dtype, width)[0] for row in packed]
    np.testing.assert_allclose(found, slow, rtol=1e-6, atol=1e-7)


def test_deciding_rows_are_the_models(model: Path) -> None:
    from random_model import random_weights

    from flashllm.model.config import ModelConfig

    opened = read_model(model)
    weights = random_weights(ModelConfig.from_json(opened.manifest.config), 5)
    with UnitReader(opened, "pread") as reader:
        for i in (0, streamed.LAYERS - 1):
            rows = deciding_rows(reader, i)
            assert np.array_equal(rows, weights[f"layers.{i}.ffn_up"])
            bias = deciding_bias(read_small(model), i, row_part(opened, i))
            assert np.array_equal(bias, weights[f"layers.{i}.ffn_up_bias"])


def test_a_recorder_puts_pieces_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    shape = Shape(layers=2, tokens=10, hidden=8, neurons=21)
    x = rng.standard_normal((2, 10, 8)).astype(np.float32)
    hidden = np.maximum(rng.standard_normal((2, 10, 21)), 0).astype(np.float32)
    with ActivityFile(tmp_path / "activity", shape) as file:
        recorder = Recorder(file)
        recorder.begin(3)
        for rows in (slice(3, 7), slice(7, 10)):  # two steps, each layer in pieces
            for layer in range(2):
                for cut in (slice(0, 5), slice(5, 6), slice(6, 21)):
                    recorder(layer, cut.start, x[layer, rows], hidden[layer, rows, cut])
        file.sync()
    with ActivityFile(tmp_path / "activity", shape) as file:  # found again
        for layer in range(2):
            found = file.layer(layer)
            tokens = np.arange(3, 10)
            np.testing.assert_allclose(found.inputs(tokens), x[layer, 3:], rtol=1e-3, atol=1e-4)
            assert np.array_equal(found.firing(tokens), hidden[layer, 3:] > 0)
            assert found.active(tokens) == pytest.approx((hidden[layer, 3:] > 0).mean())
            assert not found.firing(np.arange(3)).any()
    with ActivityFile(tmp_path / "activity", Shape(2, 11, 8, 21)) as file:  # of another shape
        assert not file.layer(0).fired.any()


def test_inputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    shape = Shape(1, 2, 4, 3)
    with ActivityFile(tmp_path / "activity", shape) as file:
        with pytest.raises(EngineError, match="layer 0"):
            file.write(0, 0, np.full((2, 4), np.nan, np.float32), np.zeros((2, 3), bool))
        file.write(0, 0, np.full((2, 4), 1e6, np.float32), np.zeros((2, 3), bool))
        assert np.isfinite(file.layer(0).x).all()


JSON = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["identity", "windows", "a"]), inner)
    ),
)


@settings(max_examples=60)
@given(st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_kept_count_as_nothing(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder))
        for name in (STATE_FILE, ACTIVITY_FILE, "layer-0000.safetensors"):
            (scratch.folder / name).write_bytes(data)
        assert scratch.windows_done({"version": 1}) == 0
        assert scratch.load_layer(0, "identity") is None
        with scratch.activity(Shape(1, 2, 4, 3)) as file:
            assert not file.layer(0).x.any()


def test_windows_are_spread_over_long_texts(model: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_dir(model)
    files = []
    for name, times in (("a", 40), ("b", 200)):
        files.append(tmp_path / name)
        files[-1].write_text((tiny.CORPUS + name) * times)
    for tokens in (500, 2000, 100_000):
        windows = read_windows(files, tokenizer, tokens, 96)
        count = sum(map(len, windows))
        assert all(0 < len(window) <= 96 for window in windows)
        assert count <= tokens + 96
        assert count >= min(tokens, 10_000) * 0.8
        again = read_windows(files, tokenizer, tokens, 96)
        assert all(np.array_equal(a, b) for a, b in zip(windows, again, strict=True))


def test_some_windows_are_held_out() -> None:
    windows = [np.zeros(length, np.int64) for length in (50,) * 24]
    train, held = split(windows)
    assert [len(run) for run in held] == [50, 50, 50]
    assert len(train) == 21 * 50
    assert not set(train) & set(np.concatenate(held))
    assert all((np.diff(run) == 1).all() for run in held)
    train, held = split(windows[:1])
    assert (len(train), len(held[0])) == (40, 10)
