"""Pruning of a tiny model: end to end, stopped and gone on with; the methods by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from flashllm.convert import convert
from flashllm.convert.layer_runner import read_units
from flashllm.convert.matrices import matrices, packed
from flashllm.convert.pruning import Pruned, prune_model
from flashllm.convert.pruning_methods import BLOCK, Inputs, Pattern, prune, sparsegpt
from flashllm.errors import Cancelled, InvalidInput, OutOfBudget, UnsupportedModel
from flashllm.flash import writer
from flashllm.flash.format import read_model
from flashllm.flash.partial import partial_folder
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.reader import UnitReader
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

OPTIONS = LoadOptions(mem_budget=None, threads=1)
HALF = Pattern(0.5)
SHAPE: dict[str, Any] = {"layers": 2, "hidden": 64, "ffn": 160, "heads": 4}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(tiny.CORPUS * 12)
    return file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.model_dir(tmp_path_factory.mktemp("model"), dtype="f16", **SHAPE)


def pruned(model: Path, target: Path, text: Path | None = None, **options: Any) -> Pruned:
    texts = [] if text is None else [text]
    settings = {"pattern": HALF, "options": OPTIONS, "tokens": 600, **options}
    return prune_model(model, target, text=texts, **settings)


def layers_of(model: Path) -> dict[str, np.ndarray]:
    """The matrices of the layers, by role."""
    opened, found = read_model(model), {}
    with UnitReader(opened) as reader:
        for name, group in opened.groups.items():
            if not name.startswith("layers."):
                continue
            units, prefix = read_units(reader, group), name.rpartition(".")[0]
            for part in group.parts:
                own = units[part.first_unit : part.first_unit + part.units]
                ffn = ("ffn_gate", "ffn_up", "ffn_down")
                roles = (part.role,) if isinstance(part, MatrixPart) else ffn
                for role, matrix in zip(roles, matrices(part, own), strict=True):
                    found[f"{prefix}.{role}"] = matrix
    return found


def logits(model: Path, tokens: list[int]) -> np.ndarray:
    decoder = load_decoder(model, LoadOptions(mem_budget=None, n_ctx=128, threads=1))
    found = decoder.step(decoder.new_sequence(128), tokens, logits="all")
    decoder.close()
    return found


# ------------------------------------------------------------------ methods


def correlated(rows: int, cols: int, seed: int = 0) -> np.ndarray:
    """Inputs of a few causes, of which some columns have much and others little."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, cols // 4)) @ rng.standard_normal((cols // 4, cols))
    return ((mixed + rng.standard_normal((rows, cols))) * rng.uniform(0.1, 3, cols)).astype("f4")


def gathered(x: np.ndarray) -> Inputs:
    inputs = Inputs(x.shape[1], hessian=True)
    for first in range(0, len(x), 100):
        inputs.add(x[first : first + 100])
    return inputs


@pytest.mark.parametrize(
    "pattern", [HALF, Pattern(0.7), Pattern.parse("2:4"), Pattern.parse("2:8")]
)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_so_many_become_zero(method: str, pattern: Pattern) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((48, 320), dtype=np.float32)
    after = prune(method, w, gathered(correlated(900, 320)), pattern)
    gone = after == 0
    assert abs(gone.mean() - pattern.sparsity) < 0.003
    if pattern.group:
        assert (gone.reshape(-1, pattern.group).sum(axis=1) == pattern.zeros).all()
    elif method == "wanda":
        assert (gone.sum(axis=1) == round(pattern.sparsity * 320)).all()
    if method != "sparsegpt":
        assert np.array_equal(after[~gone], w[~gone])


def test_each_method_loses_less_than_the_one_before() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((64, 256), dtype=np.float32)
    x = correlated(2500, 256)
    held_out = x[2000:]
    inputs = gathered(x[:2000])
    errors = {
        method: np.square(held_out @ (prune(method, w, inputs, HALF) - w).T).sum()
        for method in ("magnitude", "wanda", "sparsegpt")
    }
    assert errors["wanda"] < 0.8 * errors["magnitude"]
    assert errors["sparsegpt"] < 0.6 * errors["wanda"]


def test_wanda_as_published() -> None:
    """By plain loops: in each row those go whose |w| times the norm of their inputs is least."""
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((5, 8), dtype=np.float32), correlated(50, 8)
    after = prune("wanda", w, gathered(x), HALF)
    for row, found in zip(w, after, strict=True):
        scores = [abs(row[j]) * np.sqrt(np.square(x[:, j]).sum()) for j in range(8)]
        gone = sorted(range(8), key=lambda j: scores[j])[:4]
        assert set(np.flatnonzero(found == 0)) == set(gone)


def test_sparsegpt_as_published() -> None:
    """By plain steps in float64: of one block, with inverses computed anew for every column."""
    rng = np.random.default_rng(4)
    cols = 24
    assert cols <= BLOCK
    w, x = rng.standard_normal((6, cols), dtype=np.float32), correlated(400, cols)
    after = sparsegpt(w, gathered(x), HALF)
    h = 2 / len(x) * (x.astype(np.float64).T @ x)
    h += 0.01 * np.diag(h).mean() * np.eye(cols)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(cols)]
    scores = np.square(w) / np.array([inverse[0, 0] for inverse in inverses])
    gone = scores <= np.sort(scores.reshape(-1))[scores.size // 2 - 1]
    expected = w.astype(np.float64)
    for j, inverse in enumerate(inverses):
        error = np.where(gone[:, j], expected[:, j], 0) / inverse[0, 0]
        expected[:, j:] -= error[:, None] * inverse[0]
        expected[gone[:, j], j] = 0
    assert np.array_equal(after == 0, gone)
    np.testing.assert_allclose(after, expected, atol=2e-4)


def test_columns_without_inputs_become_zero() -> None:
    x = correlated(300, 64)
    x[:, [3, 40]] = 0
    w = np.ones((4, 64), np.float32)
    after = sparsegpt(w, gathered(x), Pattern(0.25))
    assert np.isfinite(after).all()
    assert not after[:, [3, 40]].any()


@pytest.mark.parametrize("text", ["4:2", "2", "a:4", "0:4", "2:99", ""])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInput, match="pattern"):
        Pattern.parse(text)


def test_wrong_patterns() -> None:
    with pytest.raises(InvalidInput, match="more than 0"):
        Pattern(1.0)
    with pytest.raises(InvalidInput, match="multiple of 4"):
        prune("magnitude", np.ones((2, 6), np.float32), None, Pattern.parse("2:4"))


# ------------------------------------------------------------------ matrices and units


@pytest.mark.parametrize("codec", ["tile", "bitmap"])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8", "q4"])
def test_units_hold_what_was_packed(dtype: str, codec: str) -> None:
    rng = np.random.default_rng(5)
    shapes = [(100, 72), (100, 72), (72, 100)]
    weights = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes]
    for matrix in weights:
        matrix[rng.random(matrix.shape) < 0.6] = 0
    parts: list[tuple[Any, list[np.ndarray]]] = [
        (MatrixPart.plan("attn_q", dtype, *shapes[0], 0, codec), weights[:1]),
        (FFNPart.plan("ffn", codec, (dtype,) * 3, 100, 72, 0), weights),
        (FFNPart.plan("ffn", codec, (None, dtype, dtype), 100, 72, 0), weights[1:]),
    ]
    for part, before in parts:
        units, lost = packed(part, before, before)
        assert len(units) == part.units
        assert (part.lengths(0.0) <= [len(unit) for unit in units]).all()
        assert ([len(unit) for unit in units] <= part.lengths()).all()
        for found, matrix, (error, power) in zip(matrices(part, units), before, lost, strict=True):
            assert np.array_equal(found[matrix == 0], matrix[matrix == 0])
            off = np.square(found - matrix, dtype=np.float64).sum()
            assert off == pytest.approx(error)
            assert error / power < {"f16": 1e-6, "bf16": 1e-4, "q8": 1e-4, "q4": 0.01}[dtype]


# ------------------------------------------------------------------ whole models


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_a_pruned_model(tmp_path: Path, model: Path, text: Path, method: str) -> None:
    seen: list[tuple[int, int]] = []
    found = pruned(
        model, tmp_path / "p", text, method=method, on_progress=lambda *at: seen.append(at)
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert abs(found.sparsity - 0.5) < 0.01
    manifest = read_model(found.path).manifest
    assert manifest.codec == "bitmap"
    assert manifest.source["pruned"]["method"] == method
    assert set(manifest.loss or {}) >= {"attn_q", "ffn_down"}
    before, after = layers_of(model), layers_of(found.path)
    for role, matrix in after.items():
        gone = matrix == 0
        assert abs(gone.mean() - 0.5) < 0.02
        if method != "sparsegpt":
            assert np.array_equal(matrix[~gone], before[role][~gone])
    tokens = Tokenizer.from_dir(model).encode(tiny.CORPUS)[:60]
    off = np.abs(logits(found.path, tokens) - logits(model, tokens)).max()
    assert 0 < off < 20


def test_the_same_whatever_stopped_it(
    tmp_path: Path, model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "SYNC_BYTES", 0)
    seen: list[tuple[int, int]] = []
    whole = pruned(model, tmp_path / "whole", text, on_progress=lambda *at: seen.append(at)).path
    kept = 0
    for stop in range(0, len(seen), 5):
        target = tmp_path / f"stopped-{stop}"
        left = iter(range(stop))

        def on_progress(done: int, total: int, left: Any = left) -> None:
            if next(left, None) is None:
                raise Cancelled("stop")

        with pytest.raises(Cancelled):
            pruned(model, target, text, on_progress=on_progress)
        kept += partial_folder(target).exists()
        assert pruned(model, target, text).sparsity == pytest.approx(0.5, abs=0.01)
        for file in whole.iterdir():
            assert (target / file.name).read_bytes() == file.read_bytes()
    assert kept > 2


def test_what_is_pruned_already_is_only_packed(tmp_path: Path, text: Path) -> None:
    checkpoint = tiny.write_gguf(tmp_path / "m.gguf", sparsity=0.55, **SHAPE)
    for name, sparse_min in (("tile", None), ("bitmap", 0.4)):
        model = convert(checkpoint, tmp_path / name, dtype="f16", sparse_min=sparse_min)
        found = pruned(model, tmp_path / f"p-{name}", text)
        assert found.already == 14
        before, after = layers_of(model), layers_of(found.path)
        assert all(np.array_equal(before[role], after[role]) for role in before)


@pytest.mark.parametrize(("dtype", "becomes"), [("f32", "f16"), ("q4m", "q4"), ("q8", "q8")])
def test_dtypes(tmp_path: Path, dtype: str, becomes: str) -> None:
    model = tiny.model_dir(tmp_path, dtype=dtype, **SHAPE)
    found = pruned(model, tmp_path / "p", method="magnitude", pattern=Pattern(0.6)).path
    parts = [p for n, ps in read_model(found).parts.items() if "layers" in n for p in ps]
    assert {p.dtype for p in parts if isinstance(p, MatrixPart)} == {becomes}
    asked = pruned(model, tmp_path / "q", method="magnitude", dtype="q8").path
    assert np.isfinite(logits(asked, [1, 2, 3])).all()


def test_refusals(tmp_path: Path, model: Path, text: Path) -> None:
    with pytest.raises(InvalidInput, match="needs text"):
        pruned(model, tmp_path / "p")
    with pytest.raises(InvalidInput, match="unknown"):
        pruned(model, tmp_path / "p", text, method="luck")
    with pytest.raises(InvalidInput, match="q4m"):
        pruned(model, tmp_path / "p", text, dtype="q4m")
    with pytest.raises(OutOfBudget, match="--tokens"):
        pruned(model, tmp_path / "p", text, options=LoadOptions(mem_budget=100_000_000))
    row = tiny.model_dir(tmp_path, codec="row", **SHAPE)
    with pytest.raises(UnsupportedModel, match="one by one"):
        pruned(row, tmp_path / "p", method="magnitude")
    assert not (tmp_path / "p").exists()
