"""A tiny flash model to damage, made once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never written to. Its feed-forward networks have several units each."""
    return tiny.model_dir(
        tmp_path_factory.mktemp("pristine"), gguf_dtype="Q4_1", hidden=128, ffn=4096, heads=2
    )


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    """A copy that the test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))
