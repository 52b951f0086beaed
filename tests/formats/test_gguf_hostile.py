"""GGUF files that lie: each is refused by name, quickly, before memory is taken for it."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.formats.gguf import read_header

HUGE = 1 << 40


def header(tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, keys)


def key(name: str, kind: int, value: bytes) -> bytes:
    return tiny.gguf_string(name) + struct.pack("<I", kind) + value


def entry(name: str, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return (
        tiny.gguf_string(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def with_data(head: bytes, nbytes: int) -> bytes:
    return tiny.pad(head, 32) + bytes(nbytes)


LIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends inside"),
    "wrong magic": (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
    "truncated counts": (header()[:20], "ends inside"),
    "huge tensor count": (header(tensors=HUGE), "tensors"),
    "huge key count": (header(keys=HUGE), "metadata keys"),
    "more keys than bytes": (header(keys=1000), "metadata keys"),
    "huge key length": (header(keys=1) + struct.pack("<Q", HUGE) + bytes(20), "claims"),
    "long string": (header(keys=1) + key("k", 8, struct.pack("<Q", 1 << 20)), "ends inside"),
    "not UTF-8": (header(keys=1) + key("k", 8, struct.pack("<Q", 2) + b"\xff\xfe"), "UTF-8"),
    "huge string array": (header(keys=1) + key("k", 9, struct.pack("<IQ", 8, HUGE)), "claims"),
    "string array past end": (
        header(keys=1) + key("k", 9, struct.pack("<IQ", 8, 1 << 20)),
        "ends inside",
    ),
    "huge number array": (header(keys=1) + key("k", 9, struct.pack("<IQ", 12, HUGE)), "claims"),
    "number array past end": (
        header(keys=1) + key("k", 9, struct.pack("<IQ", 12, 1 << 20)),
        "ends inside",
    ),
    "unknown value type": (header(keys=1) + key("k", 13, bytes(8)), "value type 13"),
    "unknown array type": (header(keys=1) + key("k", 9, struct.pack("<IQ", 99, 1)), "type 99"),
    "truth value of 2": (header(keys=1) + key("k", 7, b"\2"), "truth value"),
    "key twice": (header(keys=2) + 2 * key("k", 4, bytes(4)), "twice"),
    "huge alignment": (
        header(keys=1) + key("general.alignment", 4, struct.pack("<I", 1 << 31)),
        "power of two",
    ),
    "odd alignment": (
        header(keys=1) + key("general.alignment", 4, struct.pack("<I", 48)),
        "power of two",
    ),
    "zero alignment": (header(keys=1) + key("general.alignment", 4, bytes(4)), "power of two"),
    "text alignment": (
        header(keys=1) + key("general.alignment", 8, tiny.gguf_string("32")),
        "power of two",
    ),
    "no dimensions": (with_data(header(1) + entry("t", ()), 64), "dimensions"),
    "many dimensions": (with_data(header(1) + entry("t", (1,) * 5), 64), "dimensions"),
    "zero dimension": (with_data(header(1) + entry("t", (32, 0)), 64), "impossible shape"),
    "product overflows": (
        with_data(header(1) + entry("t", (1 << 32, 1 << 32, 1 << 32)), 64),
        "claims",
    ),
    "ragged block": (with_data(header(1) + entry("t", (33,), kind=8), 64), "impossible shape"),
    "unknown tensor type": (with_data(header(1) + entry("t", (8,), kind=77), 64), "type 77"),
    "long tensor name": (with_data(header(1) + entry("t" * 300, (8,)), 64), "claims 300"),
    "past end": (with_data(header(1) + entry("t", (8,), offset=64), 64), "ends at byte"),
    "huge offset": (with_data(header(1) + entry("t", (8,), offset=1 << 63), 64), "ends at byte"),
    "unaligned": (with_data(header(1) + entry("t", (8,), offset=4), 64), "aligned"),
    "overlap": (with_data(header(2) + entry("a", (16,)) + entry("b", (8,), offset=32), 96), "over"),
    "tensor twice": (
        with_data(header(2) + entry("a", (8,)) + entry("a", (8,), offset=32), 96),
        "twice",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_by_name(tmp_path: Path, lie: str) -> None:
    data, message = LIES[lie]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(CorruptModel, match=message) as caught:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.perf_counter() - begin < 1
    assert peak < 64 << 20
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"FUGG" + header()[4:], "big-endian"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (header(version=1), "version 1"),
        (header(version=4), "version 4"),
        (with_data(header(1) + entry("t", (256,), kind=19), 256), "'t' is IQ1_S"),
        (header(keys=1) + key("k", 9, struct.pack("<IQ", 9, 1) + bytes(12)), "array of arrays"),
    ],
)
def test_valid_but_foreign_files_say_so(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "foreign.gguf"
    path.write_bytes(data)
    with pytest.raises(UnsupportedModel, match=message):
        read_header(path)


def small_file(**metadata: Any) -> bytes:
    keys = {"general.architecture": "llama", "a.list": ["one", "two"], "a.flag": True, **metadata}
    rows = np.arange(64, dtype=np.float32).reshape(2, 32)
    return tiny.gguf_bytes(keys, {"a": (rows, "Q8_0"), "b": (rows, "F32"), "c": (rows[0], "F16")})


def test_truncated_at_every_byte(tmp_path: Path) -> None:
    path, whole = tmp_path / "cut.gguf", small_file()
    path.write_bytes(whole)
    tensors = read_header(path).tensors.values()
    needed = max(tensor.offset + tensor.nbytes for tensor in tensors)
    for length in range(needed):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptModel):
            read_header(path)


@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_bytes_raise_only_our_errors(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    data = bytearray(small_file())
    for place, value in edits:
        data[place % len(data)] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    try:
        read = read_header(path)
    except FlashError:
        return
    assert all(t.offset + t.nbytes <= len(data) for t in read.tensors.values())


@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 400), st.binary(min_size=1, max_size=64))
def test_spliced_bytes_raise_only_our_errors(tmp_path: Path, place: int, splice: bytes) -> None:
    data = small_file()
    path = tmp_path / "spliced.gguf"
    path.write_bytes(data[:place] + splice + data[place:])
    try:
        read_header(path)
    except FlashError:
        return
