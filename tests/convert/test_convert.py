"""Converted models hold the source's weights: exactly, or as nearly as the manifest says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
from gguf.quants import dequantize as public_dequantize
from unpacking import read_panels, read_row, read_tile_ffn

from flashllm.convert import convert, verify
from flashllm.errors import InvalidInput
from flashllm.flash.format import FFNPart, FlashModel, MatrixPart, read_model, read_small
from flashllm.flash.reader import UnitReader
from flashllm.model.config import ModelConfig

ATTENTION = {"attn_q": "attn_q", "attn_k": "attn_k", "attn_v": "attn_v", "attn_out": "attn_output"}


def public_weights(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a GGUF as float32, by the public package."""
    tensors = gguf.GGUFReader(path).tensors
    return {
        t.name.removesuffix(".weight"): public_dequantize(t.data, t.tensor_type) for t in tensors
    }


def flash_weights(path: Path) -> dict[str, np.ndarray]:
    """Every matrix of a flash model as float32, by GGUF name, by the slow reading of units."""
    model = read_model(path)
    weights = {}
    with UnitReader(model) as reader:
        for name, group in model.groups.items():
            units = [np.zeros(int(length), np.uint8) for length in group.lengths]
            reader.read_units(group, range(group.units), units)
            for part in group.parts:
                own = [u.tobytes() for u in units[part.first_unit : part.first_unit + part.units]]
                if isinstance(part, MatrixPart):
                    gguf_name = gguf_matrix(name, part.role)
                    tiles = -(-part.cols // 32)
                    rows = read_panels(b"".join(own), part.dtype, part.panels, tiles)
                    weights[gguf_name] = rows[: part.rows, : part.cols]
                else:
                    layer = name.split(".")[1]
                    for role, matrix in zip(
                        ("gate", "up", "down"), read_ffn(part, own), strict=True
                    ):
                        weights[f"blk.{layer}.ffn_{role}"] = matrix
    return weights


def gguf_matrix(group: str, role: str) -> str:
    if group in ("embed", "output"):
        return {"embed": "token_embd", "output": "output"}[group]
    return f"blk.{group.split('.')[1]}.{ATTENTION[role]}"


def read_ffn(part: FFNPart, units: list[bytes]) -> list[np.ndarray]:
    dtypes = (part.gate_dtype, part.up_dtype, part.down_dtype)
    if part.codec == "tile":
        gate, up, down = read_tile_ffn(units, dtypes, part.width, part.blocks_per_unit)
        n, w = part.neurons, part.width
        return [gate[:n, :w], up[:n, :w], down[:w, :n]]
    rest, rows = b"".join(units), []
    for _ in range(part.neurons):
        for dtype in dtypes:
            row, rest = read_row(rest, dtype, part.width)
            rows.append(row)
    assert rest == b""
    return [np.array(rows[0::3]), np.array(rows[1::3]), np.array(rows[2::3]).T]


def relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.sqrt(((expected - got) ** 2).sum() / (expected**2).sum()))


@pytest.mark.parametrize("gguf_dtype", tiny.GGML_TYPES)
def test_keep_loses_nothing(tmp_path: Path, gguf_dtype: str) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", dtype=gguf_dtype, tied=False)
    target = convert(source, tmp_path / "m")
    expected, got = public_weights(source), flash_weights(target)
    matrices = {name for name, w in expected.items() if w.ndim == 2}
    assert set(got) == matrices
    for name in matrices:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert read_model(target).manifest.loss is None
    small = read_small(target)
    np.testing.assert_array_equal(small["layers.1.ffn_norm"], expected["blk.1.ffn_norm"])
    np.testing.assert_array_equal(small["output_norm"], expected["output_norm"])


@pytest.mark.parametrize("codec", ["tile", "row"])
@pytest.mark.parametrize(
    ("dtype", "limit"), [("f32", 0), ("f16", 3e-4), ("bf16", 3e-3), ("q8", 7e-3), ("q4", 0.1)]
)
def test_the_loss_is_measured(tmp_path: Path, dtype: str, limit: float, codec: str) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    target = convert(source, tmp_path / "m", dtype=dtype, codec=codec)
    expected, got = public_weights(source), flash_weights(target)
    loss = read_model(target).manifest.loss
    if dtype == "f32":
        assert loss is None
    else:
        assert set(loss) == {"embed", *ATTENTION, "ffn_gate", "ffn_up", "ffn_down"}
        assert loss["embed"] == pytest.approx(
            relative_error(expected["token_embd"], got["token_embd"]), abs=1e-6
        )
        assert max(loss.values()) < limit
    for name, w in got.items():
        assert relative_error(expected[name], w) <= limit


@pytest.mark.parametrize("gguf_dtype", ["Q4_1", "Q8_0", "BF16"])
def test_row_keeps_gate_and_up_and_says_what_down_lost(tmp_path: Path, gguf_dtype: str) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", dtype=gguf_dtype)
    target = convert(source, tmp_path / "m", codec="row")
    expected, got = public_weights(source), flash_weights(target)
    for name in ("blk.0.ffn_gate", "blk.1.ffn_up", "blk.0.attn_q", "token_embd"):
        np.testing.assert_array_equal(got[name], expected[name])
    loss = read_model(target).manifest.loss
    errors = [
        relative_error(expected[f"blk.{i}.ffn_down"], got[f"blk.{i}.ffn_down"]) for i in (0, 1)
    ]
    if gguf_dtype == "BF16":
        assert loss is None
        assert max(errors) == 0
    else:
        assert set(loss) == {"ffn_down"}
        assert min(errors) <= loss["ffn_down"] <= max(errors)


@pytest.mark.parametrize(("hidden", "ffn", "vocab"), [(32, 32, 261), (96, 160, 300), (40, 72, 320)])
def test_odd_sizes(tmp_path: Path, hidden: int, ffn: int, vocab: int) -> None:
    source = tiny.write_gguf(
        tmp_path / "m.gguf", hidden=hidden, ffn=ffn, vocab=vocab, heads=2, kv_heads=1, dtype="F16"
    )
    expected = public_weights(source)
    for codec in ("tile", "row"):
        for name, w in flash_weights(convert(source, tmp_path / codec, codec=codec)).items():
            np.testing.assert_array_equal(w, expected[name], err_msg=name)


def test_pieces_of_a_large_matrix_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flashllm.convert import units

    source = tiny.write_gguf(tmp_path / "m.gguf", dtype="Q8_0", vocab=700)
    whole = convert(source, tmp_path / "whole", dtype="q4", codec="row")
    monkeypatch.setattr(units, "JOB_WEIGHTS", 2048)
    pieces = convert(source, tmp_path / "pieces", dtype="q4", codec="row")
    for name in ("units-00001.safetensors", "small.safetensors"):
        assert (whole / name).read_bytes() == (pieces / name).read_bytes()


def test_the_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", metadata={"general.name": "Tiny\n\x1b[31mred"})
    target = convert(source, tmp_path / "m")
    model: FlashModel = read_model(target)
    manifest = model.manifest
    first = min(int(tensor.data_offset) for tensor in gguf.GGUFReader(source).tensors)
    assert manifest.source == {
        "path": "m.gguf",
        "format": "gguf",
        "headers_sha256": hashlib.sha256(source.read_bytes()[:first]).hexdigest(),
        "files": {"m.gguf": source.stat().st_size},
    }
    assert (manifest.name, manifest.licence) == ("Tiny[31mred", "apache-2.0")
    assert (manifest.codec, manifest.dtype) == ("tile", "keep")
    config = ModelConfig.from_json(manifest.config)
    assert (config.hidden_size, config.n_layers, config.tied_head) == (64, 2, True)
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(manifest.files)
    assert read_model(convert(source, tmp_path / "n", name="mine")).manifest.name == "mine"


def test_converting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf", dtype="Q4_0")
    first, second = (convert(source, tmp_path / name) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    seen: list[tuple[int, int]] = []
    target = convert(source, tmp_path / "m", on_progress=lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert len({total for _, total in seen}) == 1
    seen.clear()
    report = verify(target, lambda *at: seen.append(at))
    assert seen == sorted(seen)
    assert seen[-1] == (report.bytes, report.bytes)


def test_options_that_do_not_exist(tmp_path: Path, tiny_gguf: Path) -> None:
    for options in ({"dtype": "q5"}, {"codec": "bitmap"}):
        with pytest.raises(InvalidInput, match="use one of"):
            convert(tiny_gguf, tmp_path / "m", **options)
    target = convert(tiny_gguf, tmp_path / "m")
    with pytest.raises(InvalidInput, match="exists"):
        convert(tiny_gguf, target)
    assert convert(tiny_gguf, target, dtype="q8", overwrite=True) == target
    assert read_model(target).manifest.dtype == "q8"
