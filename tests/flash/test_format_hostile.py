"""Flash models that lie, signed as if they were honest: refused by name, before any weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import UNITS, edit_header, edit_manifest, write_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel, FlashError, UnsupportedModel
from flashllm.flash.format import read_model, read_small

Edit = Callable[[dict[str, Any]], object]


def part(manifest: dict[str, Any], group: str = "layers.0.ffn") -> dict[str, Any]:
    return manifest["groups"][group]["parts"][0]


def add_file(name: str) -> Edit:
    return lambda m: m["files"].update({name: m["files"]["tokenizer.json"]})


MANIFESTS: dict[str, tuple[Edit, str]] = {
    "foreign": (lambda m: m.update(format="other"), "not a flashllm-model"),
    "no name": (lambda m: m.pop("name"), "'name'"),
    "name with escapes": (lambda m: m.update(name="\x1b[2J"), "printable"),
    "unknown key": (lambda m: m.update(future=1), "future"),
    "config is a list": (lambda m: m.update(config=[]), "'config'"),
    "loss of text": (lambda m: m.update(loss={"a": "b"}), "loss"),
    "unknown codec": (lambda m: m.update(codec="zip"), "codec"),
    "parent folder": (add_file("../tokenizer.json"), "not the name of a file"),
    "absolute path": (add_file("/etc/passwd"), "not the name of a file"),
    "windows path": (add_file("a\\b"), "not the name of a file"),
    "hidden file": (add_file(".bashrc"), "not the name of a file"),
    "the manifest": (add_file("manifest.json"), "not the name of a file"),
    "no small file": (lambda m: m["files"].pop("small.safetensors"), "small"),
    "unlisted container": (lambda m: m["files"].pop(UNITS), "not listed"),
    "missing file": (add_file("absent.json"), "missing"),
    "other size": (lambda m: m["files"]["tokenizer.json"].update(bytes=3), "manifest says 3"),
    "size is text": (lambda m: m["files"]["tokenizer.json"].update(bytes="3"), "'bytes'"),
    "other hash": (lambda m: m["files"]["tokenizer.json"].update(xxh3="0" * 16), "checksum"),
    "no hash": (lambda m: m["files"]["tokenizer.json"].update(xxh3="zz"), "16 hex"),
    "group is text": (lambda m: m["groups"].update(embed="x"), "embed"),
    "group elsewhere": (lambda m: m["groups"]["embed"].update(file="../x"), "not listed"),
    "group in the tokenizer": (
        lambda m: m["groups"]["embed"].update(file="tokenizer.json"),
        "damaged|other groups",
    ),
    "group without parts": (lambda m: m["groups"]["embed"].update(parts=[]), "no parts"),
    "index of another": (
        lambda m: m["groups"]["embed"].update(index_xxh3="0" * 16),
        "index is not the one",
    ),
    "one group fewer": (lambda m: m["groups"].pop("embed"), "other groups"),
    "one group more": (
        lambda m: m["groups"].update(more=m["groups"]["embed"]),
        "other groups|missing",
    ),
    "part is a number": (lambda m: m["groups"]["embed"].update(parts=[3]), "expected an object"),
    "unknown kind": (lambda m: part(m).update(kind="rnn"), "unknown part"),
    "unknown part codec": (lambda m: part(m).update(codec=["tile"]), "unknown codec"),
    "unknown dtype": (lambda m: part(m).update(gate_dtype="q3"), "dtype"),
    "dtype is a list": (lambda m: part(m).update(gate_dtype=["q4"]), "dtype"),
    "extra field": (lambda m: part(m).update(x=1), "keys"),
    "missing field": (lambda m: part(m).pop("width"), "keys"),
    "zero width": (lambda m: part(m).update(width=0), "width"),
    "negative neurons": (lambda m: part(m).update(neurons=-32), "neurons"),
    "huge neurons": (lambda m: part(m).update(neurons=1 << 60), "neurons"),
    "fractional width": (lambda m: part(m).update(width=128.0), "width"),
    "true width": (lambda m: part(m).update(width=True), "width"),
    "huge units": (lambda m: part(m).update(units=1 << 20), "its shape makes"),
    "zero per unit": (lambda m: part(m).update(blocks_per_unit=0), "grains_per_unit"),
    "huge and consistent": (
        lambda m: part(m).update(neurons=1 << 24, blocks_per_unit=1, units=1 << 19),
        "cannot hold",
    ),
    "late first unit": (lambda m: part(m).update(first_unit=1), "begins at unit 1"),
    "wider than stored": (lambda m: part(m).update(width=160), "not as long"),
    "other split": (
        lambda m: part(m).update(blocks_per_unit=1, units=128),
        "cannot hold|wrong shape",
    ),
    "other dtype": (lambda m: part(m).update(down_dtype="q8"), "not as long"),
}


@pytest.mark.parametrize("lie", MANIFESTS)
def test_manifests_that_lie(model: Path, lie: str) -> None:
    edit, message = MANIFESTS[lie]
    edit_manifest(model, edit)
    with pytest.raises(CorruptModel, match=message) as caught:
        read_model(model)
    assert "\n" not in str(caught.value)


HEADERS: dict[str, tuple[Edit, str]] = {
    "unknown dtype": (lambda h: h["embed"].update(dtype="U7"), "unknown dtype"),
    "other dtype": (lambda h: h["embed"].update(dtype="I8"), "missing or not aligned"),
    "dtype is a list": (lambda h: h["embed"].update(dtype=["U8"]), "dtype"),
    "tensor is text": (lambda h: h.update(embed="x"), "object"),
    "negative offset": (lambda h: h["embed"].update(data_offsets=[-1, 3]), "offsets"),
    "three offsets": (lambda h: h["embed"].update(data_offsets=[0, 1, 2]), "offsets"),
    "huge shape": (lambda h: h["embed"].update(shape=[1 << 61]), "lies about size"),
    "no shape": (lambda h: h["embed"].update(shape=[]), "lies about size"),
    "hole": (lambda h: h.pop("embed"), "overlaps, leaves a hole"),
    "overlap": (
        lambda h: h["embed.lengths"].update(data_offsets=h["embed.offsets"]["data_offsets"]),
        "overlaps",
    ),
    "renamed": (lambda h: h.update({"embex": h.pop("embed")}), "missing"),
    "index of another type": (lambda h: h["embed.xxh3"].update(dtype="I64"), "wrong shape"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie(model: Path, lie: str) -> None:
    edit, message = HEADERS[lie]
    edit_header(model, edit)
    with pytest.raises(CorruptModel, match=message):
        read_model(model)


@pytest.mark.parametrize("length", [0, 1, 1 << 23, 1 << 40, (1 << 64) - 1])
def test_header_lengths_that_lie(model: Path, length: int) -> None:
    with (model / UNITS).open("r+b") as file:
        file.write(length.to_bytes(8, "little"))
    with pytest.raises(CorruptModel, match=r"header|JSON"):
        read_model(model)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{",
        b'{"a":1,"a":2}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":NaN}',
        b" " * 5_000_000,
    ],
)
def test_manifests_that_are_not_json_objects(model: Path, text: bytes) -> None:
    (model / "manifest.json").write_bytes(text)
    with pytest.raises(CorruptModel, match=r"manifest\.json"):
        read_model(model)


def test_an_unsigned_change_is_seen(model: Path) -> None:
    file = model / "manifest.json"
    file.write_text(file.read_text().replace('"theta": 10000.0', '"theta": 10001.0'))
    with pytest.raises(CorruptModel, match="checksum"):
        read_model(model)


def test_another_version_is_unsupported(model: Path) -> None:
    edit_manifest(model, lambda m: m.update(version=9))
    with pytest.raises(UnsupportedModel, match="version 9"):
        read_model(model)


@pytest.mark.parametrize("suffix", ["offsets", "lengths", "xxh3"])
def test_a_changed_index_is_seen(model: Path, suffix: str) -> None:
    raw = bytearray((model / UNITS).read_bytes())
    length = int.from_bytes(raw[:8], "little")
    place = json.loads(raw[8 : 8 + length])[f"layers.0.ffn.{suffix}"]["data_offsets"][0]
    raw[8 + length + place + 8] ^= 1
    (model / UNITS).write_bytes(raw)
    with pytest.raises(CorruptModel, match=r"layers\.0\.ffn"):
        read_model(model)


def test_truncated_containers_are_seen(model: Path) -> None:
    size = (model / UNITS).stat().st_size
    for length in (0, 7, 8, 4095, 4096, 8192, size // 2, size - 4096, size - 8, size - 1):
        with (model / UNITS).open("r+b") as file:
            file.truncate(length)
        with pytest.raises(CorruptModel, match=UNITS):
            read_model(model)
        edit_manifest(model, lambda m, n=length: m["files"][UNITS].update(bytes=n))
        with pytest.raises(CorruptModel, match=UNITS):
            read_model(model)


def test_small_tensors_that_lie(model: Path, tmp_path: Path) -> None:
    import safetensors.numpy
    import xxhash

    for tensor in (np.array([np.nan], np.float32), np.zeros(3, np.float16)):
        data = safetensors.numpy.save({"output_norm": tensor})
        (model / "small.safetensors").write_bytes(data)
        entry = {"bytes": len(data), "xxh3": xxhash.xxh3_64_hexdigest(data)}
        edit_manifest(model, lambda m, e=entry: m["files"].update({"small.safetensors": e}))
        with pytest.raises(CorruptModel, match="not finite float32"):
            read_small(model)
    (model / "small.safetensors").write_bytes(data[:-1])
    with pytest.raises(CorruptModel, match="bytes"):
        read_small(model)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_field_of_the_manifest_replaced(
    model: Path, pristine: Path, data: st.DataObject
) -> None:
    manifest = json.loads((pristine / "manifest.json").read_text())
    changed = copy.deepcopy(manifest)
    node: Any = changed
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(json_values)
    write_manifest(model, changed)
    try:
        opened = read_model(model)
    except FlashError:
        return
    assert all(group.units for group in opened.groups.values())


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(edits=st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_of_the_header_replaced(
    model: Path, pristine: Path, edits: list[tuple[int, int]]
) -> None:
    original = (pristine / UNITS).read_bytes()[:8192]
    changed = bytearray(original)
    for place, value in edits:
        changed[place] = value
    with (model / UNITS).open("r+b") as file:
        file.write(changed)
    try:
        read_model(model)
    except FlashError:
        return
