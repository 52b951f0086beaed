"""A tiny flash model to damage, made once and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from flashllm.flash.format import FlashModel, read_model
from flashllm.flash.reader import UnitReader


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


@pytest.fixture
def opened(model: Path) -> FlashModel:
    """A model that the test may damage."""
    return read_model(model)


@pytest.fixture
def reader(opened: FlashModel) -> Iterator[UnitReader]:
    """Its reader."""
    with UnitReader(opened, "pread") as reader:
        yield reader
