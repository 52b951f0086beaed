"""Conversions that cannot succeed: one line that names the cause, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.convert import convert
from flashllm.errors import (
    Cancelled,
    CorruptModel,
    DiskFull,
    FlashError,
    ModelNotFound,
    UnsupportedModel,
)
from flashllm.flash.format import FFNPart, read_model
from flashllm.formats.gguf import read_header

METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 1,
    "llama.context_length": 64,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 270,
    **tiny.tokenizer_metadata(270),
}


def write(path: Path, change: Any = None, dtype: str = "F32", **metadata: Any) -> Path:
    """A one-layer GGUF whose tensors `change` may edit: {name: (array, ggml type)}."""
    weights = tiny.random_weights(1, 64, 96, 4, 2, 270)
    tensors = {name: (w, dtype if w.ndim == 2 else "F32") for name, w in weights.items()}
    if change:
        change(tensors)
    path.write_bytes(tiny.gguf_bytes({**METADATA, **metadata}, tensors))
    return path


def refuse(source: Path, error: type[FlashError], message: str, **options: Any) -> None:
    target = source.parent / "model"
    with pytest.raises(error, match=message) as caught:
        convert(source, target, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in source.parent.iterdir()] in ([source.name], [])


NAMES = list(tiny.random_weights(1, 64, 96, 4, 2, 270))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_numbers(tmp_path: Path, name: str, bad: float) -> None:
    def poison(tensors: dict[str, Any]) -> None:
        tensors[name][0].flat[-1] = bad

    refuse(write(tmp_path / "m.gguf", poison), CorruptModel, f"'{name}' holds NaN or infinite")


def test_scales_that_are_not_numbers(tmp_path: Path) -> None:
    source = write(tmp_path / "m.gguf", dtype="Q4_0")
    offset = read_header(source).tensors["blk.0.ffn_down.weight"].offset
    with source.open("r+b") as file:
        file.seek(offset + 18 * 100)  # the 100th block begins with its scale
        file.write(np.float16(np.nan).tobytes())
    refuse(source, CorruptModel, "'blk.0.ffn_down.weight' holds NaN")


def test_tensors_that_do_not_fit_the_config(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    refuse(write(path, lambda t: t.pop("blk.0.ffn_up.weight")), CorruptModel, "ffn_up.* missing")
    refuse(
        write(path, lambda t: t.update({"blk.0.attn_sinks.weight": t["output_norm.weight"]})),
        UnsupportedModel,
        "attn_sinks",
    )
    refuse(
        write(path, lambda t: t.update({"output_norm.weight": t["token_embd.weight"]})),
        CorruptModel,
        "output_norm.*expected",
    )


def test_gate_and_up_take_the_wider_of_two_dtypes(tmp_path: Path) -> None:
    source = write(
        tmp_path / "m.gguf",
        lambda t: t.update({"blk.0.ffn_up.weight": (t["blk.0.ffn_up.weight"][0], "Q8_0")}),
    )
    model = read_model(convert(source, tmp_path / "m"))
    part = model.groups["layers.0.ffn"].parts[0]
    assert isinstance(part, FFNPart)
    assert (part.gate_dtype, part.up_dtype, part.down_dtype) == ("f32", "f32", "f32")
    assert model.manifest.loss is None


@pytest.mark.parametrize("dtype", ["f16", "q8", "q4"])
def test_weights_beyond_the_dtype(tmp_path: Path, dtype: str) -> None:
    def enlarge(tensors: dict[str, Any]) -> None:
        tensors["blk.0.attn_v.weight"][0][3, 3] = 3e38

    source = write(tmp_path / "m.gguf", enlarge)
    refuse(source, UnsupportedModel, f"attn_v.*too large for {dtype}", dtype=dtype)


@pytest.mark.parametrize("key", [key for key in METADATA if key.startswith(("llama.", "general."))])
@pytest.mark.parametrize("value", ["text", [1, 2], -3, 0, 1.5, True, 4_000_000_000])
def test_metadata_of_any_type(tmp_path: Path, key: str, value: object) -> None:
    source = write(tmp_path / "m.gguf", **{key: value})
    try:
        convert(source, tmp_path / "m")
    except FlashError as error:
        assert "\n" not in str(error)
        assert not (tmp_path / "m").exists()


def test_other_files(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello, this is not a model\n" * 10)
    refuse(text, CorruptModel, "not a GGUF file")
    with pytest.raises(ModelNotFound, match=r"absent\.gguf"):
        convert(tmp_path / "absent.gguf", tmp_path / "m")
    refuse(
        write(tmp_path / "notes.txt", **{"general.architecture": "mamba"}),
        UnsupportedModel,
        "mamba",
    )


@pytest.mark.parametrize("stop", [Cancelled, KeyboardInterrupt])
def test_stopped_at_any_step(tmp_path: Path, stop: type[BaseException]) -> None:
    source = write(tmp_path / "m.gguf")
    steps: list[int] = []
    convert(source, tmp_path / "whole", on_progress=lambda done, total: steps.append(done))
    for step in steps:

        def interrupt(done: int, total: int, step: int = step) -> None:
            if done == step:
                raise stop

        with pytest.raises(stop):
            convert(source, tmp_path / "m", on_progress=interrupt)
        assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "whole"}


KILLED = """
import os, sys
from pathlib import Path
from flashllm.convert import convert

def kill(done, total):
    if done * 4 >= total * int(sys.argv[3]):
        os.kill(os.getpid(), 9)

convert(Path(sys.argv[1]), Path(sys.argv[2]), on_progress=kill)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("quarter", [1, 3])
def test_a_killed_conversion_publishes_nothing(tmp_path: Path, quarter: int) -> None:
    source, target = write(tmp_path / "m.gguf"), tmp_path / "m"
    command = [sys.executable, "-c", KILLED, str(source), str(target), str(quarter)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    assert not target.exists()
    assert convert(source, target) == target


def test_a_full_disk(tmp_path: Path) -> None:
    source = tiny.write_gguf(tmp_path / "m.gguf")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(DiskFull, match="free"):
            convert(source, disk / "model")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(edits=st.lists(st.tuples(st.integers(0), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_files_raise_only_our_errors(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(write(tmp_path / "m.gguf").read_bytes())
    header = data.index(b"blk.0.ffn_down.weight")
    for place, value in edits:
        data[place % header] = value
    (tmp_path / "m.gguf").write_bytes(data)
    try:
        convert(tmp_path / "m.gguf", tmp_path / "model", overwrite=True)
    except FlashError as error:
        assert "\n" not in str(error)
