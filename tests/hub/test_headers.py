"""Tests of hub/headers.py: a view reads as the file does, and no bytes from the hub break it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import tiny
import tiny_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError
from flashllm.formats.opening import open_checkpoint
from flashllm.hub.headers import view_header


@pytest.mark.parametrize("name", ["x.gguf", "model.safetensors"])
def test_a_view_opens_as_the_file_does(tmp_path: Path, name: str) -> None:
    folder = tiny_hf.write_hf(tmp_path / "real", ffn=512, layers=4)
    tiny.write_gguf(folder / "x.gguf", ffn=512, layers=4, vocab=4000)
    view = tmp_path / "view"
    view.mkdir()
    (view / "config.json").write_bytes((folder / "config.json").read_bytes())
    content = (folder / name).read_bytes()
    asked = 0

    def read(first: int, end: int) -> bytes:
        nonlocal asked
        asked += end - first
        return content[first:end]

    view_header(view / name, len(content), read)
    opened = [
        open_checkpoint(base / name if name.endswith("gguf") else base) for base in (folder, view)
    ]
    real, seen = (
        {t.name: (t.shape, t.dtype, t.offset, t.nbytes) for t in c.tensors.values()} for c in opened
    )
    assert seen == real
    assert opened[0].metadata == opened[1].metadata
    assert asked < len(content) / 2
    assert (view / name).stat().st_size == len(content)


def test_a_hub_that_sends_too_little_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptModel, match="3 came"):
        view_header(tmp_path / "x.gguf", 1000, lambda first, end: b"GGU")


@pytest.mark.parametrize("name", ["x.gguf", "model.safetensors"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_one_of_our_errors_or_a_view(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    start = b"GGUF\x03\0\0\0" if name == "x.gguf" else b""
    content = start + data.draw(st.binary(max_size=200))
    size = data.draw(st.sampled_from([len(content), len(content) + 7, 1 << 40]))

    def read(first: int, end: int) -> bytes:
        assert end - first <= 9 << 20  # never asks for more than a piece at a time
        piece = content[first:end]
        return piece + bytes(end - first - len(piece))

    with contextlib.suppress(FlashError):
        view_header(tmp_path / name, size, read)
