"""What every test folder shares; its place puts tests/ on the path, so `import tiny` works."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from hypothesis import settings

# The same examples in every run, however busy the machine: a failure is a change's, not luck's.
settings.register_profile("flashllm", derandomize=True, deadline=None)
settings.load_profile("flashllm")


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A tiny valid GGUF of float32 weights."""
    return tiny.write_gguf(tmp_path / "tiny.gguf")
