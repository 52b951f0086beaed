"""Sparse models whose statistics are planted: they show, when run, what was asked for."""

from __future__ import annotations

import dataclasses
import functools
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from streamed import Streamed
from unpacking import read_panels

from flashllm.flash.format import FlashModel, MatrixPart, read_model, read_small
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

TOOLS = Path(__file__).parents[1] / "tools"
FIRST, TOKENS = 64, 160


def run_tool(name: str, *arguments: object) -> None:
    """Run a tool in this process, which has imported most of what it needs. Raises SystemExit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(TOOLS / name), run_name="__main__")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a planted model of 2 layers, of a shape and dtype, once."""

    @functools.cache
    def make(shape: str, dtype: str) -> Path:
        folder = tmp_path_factory.mktemp("planted") / "m"
        run_tool("make_sparse.py", shape, folder, "--dtype", dtype, "--layers", 2)
        return folder

    return make


@dataclasses.dataclass
class Seen:
    """What a layer's feed-forward read, float32 [tokens, hidden], and which neurons fired."""

    x: np.ndarray
    fired: np.ndarray


def watched(folder: Path, layers: int, hidden: int, neurons: int) -> list[Seen]:
    """Run consecutive token ids densely; what every layer showed."""
    shapes = (TOKENS, hidden), (TOKENS, neurons)
    seen = [Seen(np.empty(shapes[0]), np.empty(shapes[1], bool)) for _ in range(layers)]
    decoder = load_decoder(folder, LoadOptions(threads=1), step_tokens=32)
    sequence = decoder.new_sequence(TOKENS)

    def look(layer: int, first: int, x: np.ndarray, given: np.ndarray) -> None:
        rows = slice(sequence.length, sequence.length + len(x))
        seen[layer].x[rows] = x
        seen[layer].fired[rows, first : first + given.shape[1]] = given != 0

    try:
        decoder.observe(look)
        decoder.step(sequence, np.arange(FIRST, FIRST + TOKENS), logits="none")
    finally:
        sequence.close()
        decoder.close()
    return seen


def expected(model: FlashModel, layer: int, x: np.ndarray) -> np.ndarray:
    """Which neurons the stored predictor expects: bool [tokens, neurons]."""
    units = Streamed.read(model.path)
    group = f"layers.{layer}.predictor"
    matrices = []
    for part in model.group(group).parts:
        assert isinstance(part, MatrixPart)
        every = range(part.first_unit, part.first_unit + part.units)
        data = b"".join(units.unit(group, i) for i in every)
        panels = read_panels(data, part.dtype, part.panels, -(-part.cols // 32))
        matrices.append(panels[: part.rows, : part.cols])
    down, up = matrices
    return x @ down.T @ up.T + read_small(model.path)[f"{group}_bias"] > 0


def new_after(needed: np.ndarray, k: int) -> float:
    """The share of neurons that a token needs and none of the k before it did."""
    shares = [
        (needed[i] & ~needed[i - k : i].any(0)).mean() if k else needed[i].mean()
        for i in range(k, len(needed))
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("shape", "dtype", "silent"),
    [("tiny-opt", "f16", 0.97), ("tiny-falcon", "q8", 0.95), ("tiny", "q4", 0.9)],
)
def test_a_planted_model_shows_what_was_planted(
    made: Callable[[str, str], Path], shape: str, dtype: str, silent: float
) -> None:
    folder = made(shape, dtype)
    model = read_model(folder)
    told = model.manifest.sparsity
    assert told is not None and model.manifest.source["kind"] == "synthetic"
    c = model.manifest.config
    new = []
    for i, seen in enumerate(watched(folder, 2, c["hidden_size"], c["ffn"]["size"])):
        predicted = expected(model, i, seen.x)
        assert seen.fired.mean() == pytest.approx(1 - silent, rel=0.2)
        assert predicted[seen.fired].mean() == pytest.approx(0.95, abs=0.02)
        assert predicted[~seen.fired].mean() == pytest.approx(0.07, abs=0.012)
        layer = told["layers"][i]
        assert predicted.mean() == pytest.approx(layer["predicted"], rel=0.15)
        assert predicted[seen.fired].mean() == pytest.approx(layer["recall"], abs=0.02)
        new.append([new_after(predicted, k) for k in (0, 1, 4)])
    np.testing.assert_allclose(
        np.mean(new, axis=0), [told["window"][k] for k in (0, 1, 4)], rtol=0.15
    )


def test_an_untied_head_counts_up(made: Callable[[str, str], Path]) -> None:
    decoder = load_decoder(made("tiny", "q4"), LoadOptions(threads=1), step_tokens=16)
    sequence = decoder.new_sequence(16)
    try:
        likeliest = decoder.step(sequence, [5, 900, 7, 1023], logits="all").argmax(1)
    finally:
        sequence.close()
        decoder.close()
    assert likeliest.tolist() == [6, 901, 8, 0]


def test_what_fires_together_is_planted_and_measured(tmp_path: Path) -> None:
    """Measured on a model in which it was planted, it is what was planted."""
    wanted = {"lag": [0.05 + 0.4 * 0.8**j for j in range(1, 65)], "active": 0.05}
    (tmp_path / "curve.json").write_text(json.dumps(wanted))
    options = ("--coactivation", tmp_path / "curve.json", "--silent", 0.95, "--hot", 0.2)
    run_tool("make_sparse.py", "tiny-opt", tmp_path / "m", *options)
    manifest = read_model(tmp_path / "m").manifest
    assert manifest.sparsity is not None and manifest.sparsity["order"] == "coactivation"
    # Texts of the tokeniser that knows bytes: token ids at random.
    text = np.random.default_rng(3).integers(32, 127, 600, np.uint8).tobytes()
    (tmp_path / "text").write_bytes(text)
    file = tmp_path / "found.json"
    run_tool("measure_coactivation.py", tmp_path / "m", tmp_path / "text", file)
    found = json.loads(file.read_bytes())
    assert found["active"] == pytest.approx(0.05, rel=0.2)
    for lag in (1, 2, 4):
        assert found["lag"][lag - 1] == pytest.approx(wanted["lag"][lag - 1], rel=0.2)
    assert np.mean(found["lag"][32:]) == pytest.approx(0.05, rel=0.2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("tiny-opt",), "give a folder"),
        (("tiny-opt", "x", "--silent", 1.5), "a share lies between"),
        (("tiny-opt", "--check", "--coactivation", __file__), "no curve of co-activation"),
    ],
)
def test_what_cannot_be_planted_is_refused(
    options: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_tool("make_sparse.py", *options)
    assert stopped.value.code
    assert says in f"{stopped.value.code} {capsys.readouterr().err}"
