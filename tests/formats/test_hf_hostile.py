"""Hugging Face folders that lie: each is refused by name, quickly, before memory is taken."""

from __future__ import annotations

import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from flashllm.errors import CorruptModel, FlashError, ModelNotFound, UnsupportedModel
from flashllm.formats.hf import CONFIG, INDEX, SINGLE
from flashllm.formats.opening import open_checkpoint

Edit = Callable[[dict[str, Any]], object]


def tensor(begin: int = 0, end: int = 16, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HEADERS: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "header|JSON"),
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "a list": (b"[]", "expected an object"),
    "deeply nested": (b'{"a":' * 100_000, "nested|JSON"),
    "a million lists": (b'{"a":[' + b"[]," * 2_000_000 + b"[]]}", "values in its JSON"),
    "a name twice": (b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2), "twice"),
    "not a number": (b'{"a":NaN}', "not a number"),
    "tensor is text": ({"a": "x"}, "object"),
    "no dtype": ({"a": {"shape": [4], "data_offsets": [0, 16]}}, "unknown dtype None"),
    "unknown dtype": ({"a": tensor(dtype="F31")}, "unknown dtype 'F31'"),
    "dtype is a list": ({"a": tensor(dtype=["F32"])}, "dtype"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 16]}}, "shape"),
    "shape is a number": ({"a": tensor(shape=4)}, "shape"),
    "negative shape": ({"a": tensor(shape=[-4])}, "shape"),
    "shape of fractions": ({"a": tensor(shape=[4.0])}, "shape"),
    "shape of truths": ({"a": tensor(shape=[True, 4])}, "shape"),
    "nine dimensions": ({"a": tensor(shape=[1] * 8 + [4])}, "shape"),
    "shape overflows": ({"a": tensor(shape=[1 << 32, 1 << 32, 4])}, "lies about size"),
    "huge dimension": ({"a": tensor(shape=[1 << 70])}, "shape"),
    "three offsets": ({"a": tensor() | {"data_offsets": [0, 16, 16]}}, "offsets"),
    "negative offset": ({"a": tensor(begin=-1)}, "offsets"),
    "ends before it begins": ({"a": tensor(16, 0)}, "overlaps"),
    "smaller than its shape": ({"a": tensor(0, 16, [3])}, "lies about size"),
    "half a byte": ({"a": tensor(0, 16, [31], "F4")}, "lies about size"),
    "overlap": ({"a": tensor(0, 8, [2]), "b": tensor(4, 16, [3])}, "overlaps"),
    "the same place": ({"a": tensor(), "b": tensor()}, "overlaps"),
    "hole at the start": ({"a": tensor(4, 16, [3])}, "hole"),
    "hole between": ({"a": tensor(0, 4, [1]), "b": tensor(8, 16, [2])}, "hole"),
    "hole at the end": ({"a": tensor(0, 12, [3])}, "header describes"),
    "beyond the file": ({"a": tensor(0, 20, [5])}, "header describes"),
    "no tensors": ({}, "header describes"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(tmp_path: Path, lie: str) -> None:
    header, message = HEADERS[lie]
    folder = tiny_hf.write_header(tmp_path / "m", header)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(CorruptModel, match=message) as caught:
        open_checkpoint(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - begin < 1
    assert peak < 64 << 20
    assert str(folder / SINGLE) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, 1, 1000, 100_000_001, 1 << 40, (1 << 64) - 1])
def test_header_lengths_that_lie(tmp_path: Path, length: int) -> None:
    folder = tiny_hf.write_header(tmp_path / "m", {"a": tensor()})
    with (folder / SINGLE).open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(300 << 20)  # a hole: the length may be true
    with pytest.raises(CorruptModel, match="header"):
        open_checkpoint(folder)


def test_truncated_anywhere(tmp_path: Path) -> None:
    folder = tiny_hf.write_header(tmp_path / "m", {"a": tensor(0, 8, [2]), "b": tensor(8, 16, [2])})
    whole = (folder / SINGLE).read_bytes()
    for length in range(len(whole)):
        (folder / SINGLE).write_bytes(whole[:length])
        with pytest.raises(CorruptModel):
            open_checkpoint(folder)


def test_an_empty_tensor_is_refused(tmp_path: Path) -> None:
    folder = tiny_hf.write_header(tmp_path / "m", {"a": tensor(), "b": tensor(16, 16, [0, 4])})
    with pytest.raises(UnsupportedModel, match="'b' of shape"):
        open_checkpoint(folder)


SHARD = "model-00002-of-00003.safetensors"

INDICES: dict[str, tuple[Edit, str]] = {
    "no map": (lambda index: index.pop("weight_map"), "weight_map"),
    "map is a list": (lambda index: index.update(weight_map=[]), "weight_map"),
    "empty map": (lambda index: index.update(weight_map={}), "weight_map"),
    "file is a number": (lambda index: move(index, 3), "not the name"),
    "parent folder": (lambda index: move(index, "../model.safetensors"), "not the name"),
    "absolute": (lambda index: move(index, "/etc/model.safetensors"), "not the name"),
    "windows folder": (lambda index: move(index, "..\\x.safetensors"), "not the name"),
    "drive": (lambda index: move(index, "C:x.safetensors"), "not the name"),
    "hidden": (lambda index: move(index, ".x.safetensors"), "not the name"),
    "null byte": (lambda index: move(index, "x\0.safetensors"), "not the name"),
    "line break": (lambda index: move(index, "x.safetensors\n"), "not the name"),
    "another kind of file": (lambda index: move(index, "config.json"), "not the name"),
    "tensor too many": (lambda index: index["weight_map"].update(more=SHARD), "'more' there"),
    "tensor too few": (lambda index: forget(index), "in it all the same"),
    "in another shard": (
        lambda index: move(index, "model-00001-of-00003.safetensors"),
        "not in it|all the same",
    ),
}


def move(index: dict[str, Any], shard: Any) -> None:
    """Let the index say that the first tensor of SHARD is in `shard`."""
    name = next(name for name, file in index["weight_map"].items() if file == SHARD)
    index["weight_map"][name] = shard


def forget(index: dict[str, Any]) -> None:
    del index["weight_map"][next(n for n, f in index["weight_map"].items() if f == SHARD)]


@pytest.mark.parametrize("lie", INDICES)
def test_indices_that_lie(tmp_path: Path, lie: str) -> None:
    edit, message = INDICES[lie]
    folder = tiny_hf.write_hf(tmp_path / "m", shards=3)
    index = json.loads((folder / INDEX).read_text())
    edit(index)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CorruptModel, match=message) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m", shards=3)
    (folder / SHARD).unlink()
    with pytest.raises(ModelNotFound, match=SHARD):
        open_checkpoint(folder)


def test_a_shard_of_another_model_is_found(tmp_path: Path) -> None:
    folder = tiny_hf.write_hf(tmp_path / "m", shards=3)
    other = tiny_hf.write_hf(tmp_path / "other", shards=3, layers=4)
    shutil.copy(other / SHARD, folder / SHARD)
    with pytest.raises(CorruptModel, match=SHARD):
        open_checkpoint(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
PLAIN = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "F4"]),
        "shape": st.sampled_from([[4], [8], [2, 2], [16], [4, 8], [1], []]),
        "data_offsets": st.sampled_from([[0, 16], [0, 8], [8, 16], [0, 4], [4, 16]]),
    }
)
ENTRY = PLAIN | st.fixed_dictionaries({"dtype": JSON, "shape": JSON, "data_offsets": JSON})


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from("abc"), PLAIN | ENTRY | JSON, max_size=3))
def test_any_header_is_refused_or_as_the_public_library_has_it(
    tmp_path: Path, header: dict[str, Any]
) -> None:
    folder = tiny_hf.write_header(tmp_path / "m", header)
    try:
        read = open_checkpoint(folder)
    except FlashError:
        return
    with safe_open(folder / SINGLE, "numpy") as peer:
        assert set(peer.keys()) == set(read.tensors)
    spans = sorted((t.offset, t.offset + t.nbytes) for t in read.tensors.values())
    assert spans[0][0] > 0
    assert spans[-1][1] == (folder / SINGLE).stat().st_size


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from([CONFIG, INDEX, SHARD]),
    st.integers(0, 1 << 14),
    st.binary(max_size=8),
    st.integers(0, 8),
)
def test_damaged_files_raise_only_our_errors(
    tmp_path: Path, name: str, place: int, splice: bytes, cut: int
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        tiny_hf.write_hf(folder, shards=3, layers=1)
    file = folder / name
    whole = file.read_bytes()
    end = len(whole) if name != SHARD else 2000  # its header
    place %= end
    file.write_bytes(whole[:place] + splice + whole[place + cut :])
    try:
        open_checkpoint(folder)
    except FlashError:
        pass
    finally:
        file.write_bytes(whole)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([CONFIG, INDEX]), JSON)
def test_any_json_raises_only_our_errors(tmp_path: Path, name: str, value: Any) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        tiny_hf.write_hf(folder, shards=2, layers=1)
    whole = (folder / name).read_bytes()
    (folder / name).write_text(json.dumps(value))
    try:
        read = open_checkpoint(folder)
        assert read.metadata == value
    except FlashError:
        pass
    finally:
        (folder / name).write_bytes(whole)
