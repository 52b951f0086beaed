"""Split GGUF files: those the public package writes are read; parts that disagree are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, ModelNotFound
from flashllm.formats.gguf import read_gguf
from flashllm.formats.opening import open_checkpoint

ROWS = np.arange(64, dtype=np.float32).reshape(2, 32)
PARTS = 3


def part_path(folder: Path, number: int, count: int = PARTS) -> Path:
    return folder / f"m-{number + 1:05}-of-{count:05}.gguf"


def write_parts(folder: Path, changes: dict[int, dict[str, Any]] | None = None) -> Path:
    """Three parts of a tensor each; changes[i] replaces keys of part i (None: removes them)."""
    for i in range(PARTS):
        keys: dict[str, Any] = {"general.architecture": "llama", "a.key": "first"} if i == 0 else {}
        keys |= {"split.no": i, "split.count": PARTS, "split.tensors.count": PARTS}
        keys |= (changes or {}).get(i, {})
        tensors = {keys.pop("tensor", f"t{i}"): (ROWS + i, "F32")}
        known = {key: value for key, value in keys.items() if value is not None}
        part_path(folder, i).write_bytes(tiny.gguf_bytes(known, tensors))
    return part_path(folder, 0)


def test_agrees_with_the_public_writer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    writer.add_string("a.key", "value")
    for i in range(5):
        writer.add_tensor(f"t{i}", ROWS * i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    for named in files:
        read = open_checkpoint(named)
        assert (read.path, read.files) == (named, tuple(files))
        assert read.metadata["a.key"] == "value"
        assert list(read.tensors) == [f"t{i}" for i in range(5)]
        for i, tensor in enumerate(read.tensors.values()):
            data = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.nbytes]
            np.testing.assert_array_equal(np.frombuffer(data, np.float32), (ROWS * i).reshape(-1))


def test_one_part_of_one_is_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "any-name.gguf"
    keys = {"general.architecture": "llama", "split.no": 0, "split.count": 1}
    path.write_bytes(tiny.gguf_bytes(keys, {"t": (ROWS, "F32")}))
    assert read_gguf(path).files == (path,)


@pytest.mark.parametrize("missing", range(PARTS))
def test_a_missing_part_is_named(tmp_path: Path, missing: int) -> None:
    write_parts(tmp_path)
    part_path(tmp_path, missing).unlink()
    named = part_path(tmp_path, (missing + 1) % PARTS)
    with pytest.raises(ModelNotFound, match=part_path(tmp_path, missing).name):
        read_gguf(named)


def swap(folder: Path) -> None:
    first, second = part_path(folder, 1), part_path(folder, 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


LIES: dict[str, tuple[dict[int, dict[str, Any]], str]] = {
    "a part of another split": ({1: {"split.count": 4}}, "part 2 of 4"),
    "wrong number": ({2: {"split.no": 1}}, "part 2 of 3"),
    "no number": ({1: {"split.no": None}}, "split.no is None"),
    "no count": ({1: {"split.count": None}}, "split.count is None"),
    "count of text": ({0: {"split.count": "3"}}, "split.count is '3'"),
    "count of nothing": ({0: {"split.count": 0}}, "one of 0 parts"),
    "negative count": ({0: {"split.count": -3}}, "split.count is -3"),
    "huge count": ({0: {"split.count": 1 << 30}}, "split.count is"),
    "too few tensors": ({0: {"split.tensors.count": 4}}, "hold 3 tensors"),
    "tensor twice": ({2: {"tensor": "t0"}}, "'t0' is in an earlier part"),
}


@pytest.mark.parametrize("lie", LIES)
def test_parts_that_disagree(tmp_path: Path, lie: str) -> None:
    changes, message = LIES[lie]
    with pytest.raises(CorruptModel, match=message) as caught:
        read_gguf(write_parts(tmp_path, changes))
    assert "\n" not in str(caught.value)


def test_swapped_and_renamed_parts(tmp_path: Path) -> None:
    path = write_parts(tmp_path)
    swap(tmp_path)
    with pytest.raises(CorruptModel, match="says it is part 3 of 3"):
        read_gguf(path)
    renamed = path.rename(tmp_path / "model.gguf")
    with pytest.raises(CorruptModel, match=r"of-00003\.gguf"):
        read_gguf(renamed)


NUMBERS = st.one_of(st.integers(-5, 5), st.integers(-(1 << 31), 1 << 32 - 1), st.just("x"))
KEYS = st.sampled_from(["split.no", "split.count", "split.tensors.count"])


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 2), KEYS, NUMBERS), min_size=1, max_size=3))
def test_any_numbers_raise_only_our_errors(
    tmp_path: Path, edits: list[tuple[int, str, int | str]]
) -> None:
    changes: dict[int, dict[str, Any]] = {}
    for part, key, value in edits:
        changes.setdefault(part, {})[key] = value
    try:
        read = read_gguf(write_parts(tmp_path, changes))
    except FlashError:
        return
    assert read.files in {
        (part_path(tmp_path, 0),),
        tuple(part_path(tmp_path, i) for i in range(3)),
    }
