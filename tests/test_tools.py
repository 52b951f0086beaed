"""The tools that acceptance runs stand on: synthetic checkpoints, and commands under a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flashllm.convert import convert, verify
from flashllm.flash.format import read_model
from flashllm.formats.opening import open_checkpoint
from flashllm.model.config import ModelConfig
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

TOOLS = Path(__file__).parents[1] / "tools"


def synthetic(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "make_synthetic.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def logits(model: Path) -> np.ndarray:
    """Logits [16, vocab] of some tokens."""
    tokens = np.random.default_rng(1).integers(3, 259, 16)
    decoder = load_decoder(model, LoadOptions(threads=1), step_tokens=16)
    sequence = decoder.new_sequence(16)
    try:
        return decoder.step(sequence, tokens, logits="all").copy()
    finally:
        sequence.close()
        decoder.close()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("synthetic")
    for model in ("tiny", "tiny-opt"):
        assert not synthetic(model, folder / model, "--shard", 3000000).returncode
    return {model: folder / model for model in ("tiny", "tiny-opt")}


def test_a_synthetic_checkpoint_is_one(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    assert len(open_checkpoint(checkpoints["tiny"]).files) > 1
    manifest = read_model(convert(checkpoints["tiny"], tmp_path / "m", dtype="q4")).manifest
    assert ModelConfig.from_json(manifest.config).n_layers == 4
    assert all(0.05 < loss < 0.1 for loss in (manifest.loss or {}).values() if loss > 0.01)


@pytest.mark.parametrize(
    ("model", "dtype", "codec"),
    [
        ("tiny", "f16", "tile"),
        ("tiny", "q4m", "tile"),
        ("tiny-opt", "q8", "tile"),
        ("tiny-opt", "q4", "row"),
    ],
)
def test_a_synthetic_flash_model_is_what_conversion_makes(
    tmp_path: Path, checkpoints: dict[str, Path], model: str, dtype: str, codec: str
) -> None:
    made = tmp_path / "made"
    done = synthetic(model, made, "--format", "flash", "--dtype", dtype, "--codec", codec)
    assert not done.returncode, done.stderr
    assert verify(made).units > 0
    target = convert(checkpoints[model], tmp_path / "converted", dtype=dtype, codec=codec)
    ours, theirs = (read_model(folder).manifest for folder in (made, target))
    assert (ours.files, ours.groups, ours.config) == (theirs.files, theirs.groups, theirs.config)
    assert np.isfinite(logits(made)).all()


@pytest.mark.parametrize(
    ("dtype", "far"),
    [
        ("f16", 0.001),  # only the order of sums differs: queries and keys lie otherwise
        ("q4", 0.1),  # and so activations round to other eight bits
    ],
)
def test_a_synthetic_gguf_is_the_same_model(tmp_path: Path, dtype: str, far: float) -> None:
    for name, kind in (("made", "flash"), ("made.gguf", "gguf")):
        done = synthetic("tiny", tmp_path / name, "--format", kind, "--dtype", dtype)
        assert not done.returncode, done.stderr
    converted = convert(tmp_path / "made.gguf", tmp_path / "converted")
    ours, theirs = logits(tmp_path / "made"), logits(converted)
    assert np.std(ours) > 0.5
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=far)


def test_a_synthetic_mixture_of_experts(tmp_path: Path) -> None:
    path = tmp_path / "moe.gguf"
    done = synthetic("tiny-moe", path, "--format", "gguf", "--dtype", "q8")
    assert not done.returncode, done.stderr
    checkpoint = open_checkpoint(path)
    assert checkpoint.metadata["general.architecture"] == "qwen3moe"
    assert checkpoint.metadata["qwen3moe.expert_used_count"] == 8
    assert checkpoint.tensor("blk.1.ffn_down_exps.weight").shape == (16, 128, 64)
    ends = [tensor.offset + tensor.nbytes for tensor in checkpoint.tensors.values()]
    assert path.stat().st_size - max(ends) < 32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("tiny-opt", "x.gguf", "--format", "gguf"), "llama.cpp does not run"),
        (("tiny-moe", "x"), "--format gguf only"),
        (("tiny", "x", "--dtype", "q4"), "is float16"),
    ],
)
def test_what_cannot_be_written_is_refused(options: tuple[str, ...], says: str) -> None:
    done = synthetic(*options)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_command_under_a_limit(tmp_path: Path) -> None:
    cgroup = Path("/sys/fs/cgroup")
    if sys.platform != "linux" or os.geteuid() or not os.access(cgroup, os.W_OK):
        pytest.skip("needs root and control groups")
    before = set(cgroup.glob("**/memcap-*"))  # of others, who may be at work, too
    take = "import sys; x = bytearray(int(sys.argv[1])); print(len(x))"
    command = [sys.executable, TOOLS / "memcap.py", "--warm", "--limit", "100MB", "--"]
    done = [
        subprocess.run([*command, sys.executable, "-c", take, size], capture_output=True, text=True)
        for size in ("20000000", "200000000")
    ]
    if "cannot make a control group" in done[0].stderr:
        pytest.skip("needs control groups that can be made")
    small, large = (json.loads(each.stderr.splitlines()[-1]) for each in done)
    assert small["code"] == 0
    assert 20e6 < small["peak_bytes"] < 100e6
    assert large["code"] == -9
    assert large["kills"] == 1
    assert done[1].returncode == 137
    assert set(cgroup.glob("**/memcap-*")) <= before
