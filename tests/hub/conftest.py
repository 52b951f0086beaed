"""A store, a Hugging Face cache and a hub of one's own: nothing here reaches the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import tiny_hf
from fake_hub import FakeHub, Repo, files_of
from huggingface_hub import close_session


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the user's is read or written."""
    for name in ("FLASHLLM_OFFLINE", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLASHLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture(scope="session")
def repo_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """acme/tiny, sharded safetensors among other things, and acme/tiny-GGUF."""
    folder = tmp_path_factory.mktemp("repos")
    gguf = tiny.write_gguf(folder / "tiny.gguf").read_bytes()
    quantised = tiny.write_gguf(folder / "tiny-q8.gguf", dtype="Q8_0").read_bytes()
    tensors = files_of(tiny_hf.write_hf(folder / "tiny", shards=2, dtype="BF16"))
    others = {"pytorch_model.bin": b"\x80pickle", "README.md": b"#"}
    return {
        "acme/tiny": tensors | others,
        "acme/tiny-GGUF": {
            "README.md": b"#",
            "tiny-F16.gguf": gguf,
            "tiny-Q8_0.gguf": quantised,
        },
    }


@pytest.fixture
def hub(
    repo_files: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """A hub that serves repo_files."""
    with FakeHub({name: Repo(dict(files)) for name, files in repo_files.items()}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.endpoint)
        yield fake
        close_session()
