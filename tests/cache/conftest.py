"""Models that stream, and small reads for every test of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamed
from streamed import FailingReader, Streamed

from flashllm.flash.prefetch import Prefetcher


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of models by streamed.write's options, made when asked for. Never write to them."""
    made: dict[str, Path] = {}

    def find(**options: object) -> Path:
        if (key := str(options)) not in made:
            target = tmp_path_factory.mktemp("streamed") / "model"
            made[key] = streamed.write(target, **options)  # type: ignore[arg-type]
        return made[key]

    return find


@pytest.fixture
def model(folder: Callable[..., Path]) -> Streamed:
    """One with a head of its own."""
    return Streamed.read(folder())


@pytest.fixture
def reader(model: Streamed) -> Iterator[FailingReader]:
    """Its reader."""
    with FailingReader(model.model) as reader:
        yield reader


@pytest.fixture
def prefetcher(reader: FailingReader) -> Iterator[Prefetcher]:
    """Reads ahead with that reader."""
    with Prefetcher(reader, 3) as prefetcher:
        yield prefetcher
