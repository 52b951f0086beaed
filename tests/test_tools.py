"""The tools that acceptance runs stand on: synthetic checkpoints, and commands under a limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashllm.convert import convert
from flashllm.flash.format import read_model
from flashllm.formats.opening import open_checkpoint
from flashllm.model.config import ModelConfig

TOOLS = Path(__file__).parents[1] / "tools"


def test_a_synthetic_checkpoint_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    command = [sys.executable, TOOLS / "make_synthetic.py", "tiny", folder, "--shard", "3000000"]
    subprocess.run(command, check=True, capture_output=True)
    checkpoint = open_checkpoint(folder)
    assert len(checkpoint.files) > 1
    manifest = read_model(convert(folder, tmp_path / "m", dtype="q4")).manifest
    assert ModelConfig.from_json(manifest.config).n_layers == 4
    assert all(0.05 < loss < 0.1 for loss in (manifest.loss or {}).values() if loss > 0.01)


def test_a_command_under_a_limit(tmp_path: Path) -> None:
    cgroup = Path("/sys/fs/cgroup")
    if sys.platform != "linux" or os.geteuid() or not os.access(cgroup, os.W_OK):
        pytest.skip("needs root and control groups")
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
    assert not list(cgroup.glob("**/memcap-*"))
