"""Tests of the built package: what a wheel must carry, and what it must not."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wheel_carries_the_manifests_and_no_weights(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("flashllm-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for manifest in (ROOT / "models").glob("*.toml"):
        assert f"flashllm/hub/manifests/{manifest.name}" in names
    assert "flashllm/cli/chat.py" in names
    assert "flashllm/py.typed" in names
    assert not [name for name in names if name.endswith((".gguf", ".safetensors"))]
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]
    assert wheel.stat().st_size < 1_000_000
