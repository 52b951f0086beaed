"""What a manifest says of a sparse model: kept as it is written, refused if it cannot be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import edit_manifest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashllm.errors import CorruptModel
from flashllm.flash.format import read_manifest, read_model
from flashllm.flash.manifest import Manifest
from flashllm.flash.sparsity import check_sparsity

LAYERS = 2

Edit = Callable[[dict[str, Any]], object]


def sound() -> dict[str, Any]:
    """What calibration might say of a model of two layers."""
    layer = {
        "rank": 64,
        "recall": 0.97,
        "false_positives": 0.05,
        "active": 0.03,
        "predicted": 0.08,
    }
    return {
        "text_tokens": 20_000,
        "order": "coactivation",
        "layers": [dict(layer), {**layer, "rank": 0, "recall": 1, "predicted": 0.0}],
        "window": [0.08 / (k + 1) for k in range(33)],
        "resident": [min(1.0, 0.08 * (k + 1)) for k in range(33)],
    }


def test_a_manifest_keeps_it(model: Path) -> None:
    manifest = read_manifest(model)
    assert manifest.sparsity is None
    assert b"sparsity" not in manifest.to_bytes()
    sparse = dataclasses.replace(manifest, sparsity=sound())
    assert Manifest.from_bytes(sparse.to_bytes(), "here") == sparse
    (model / "manifest.json").write_bytes(sparse.to_bytes())
    assert read_model(model).manifest.sparsity == sound()


LIES: dict[str, tuple[Edit, str]] = {
    "no layers": (lambda s: s.pop("layers"), "keys"),
    "unknown key": (lambda s: s.update(planted=True), "planted"),
    "no tokens": (lambda s: s.update(text_tokens=None), "'text_tokens'"),
    "negative tokens": (lambda s: s.update(text_tokens=-1), "text_tokens"),
    "endless tokens": (lambda s: s.update(text_tokens=1 << 60), "text_tokens"),
    "unknown order": (lambda s: s.update(order="size"), "order"),
    "order is a list": (lambda s: s.update(order=["none"] * 99), "order"),
    "a layer fewer": (lambda s: s["layers"].pop(), "describes 1 layers, the model has 2"),
    "layers are text": (lambda s: s.update(layers="ab"), "'layers'"),
    "layer is a number": (lambda s: s.update(layers=[1, 2]), "layer 0: expected an object"),
    "layer without rank": (lambda s: s["layers"][1].pop("rank"), "layer 1: expected an object"),
    "layer with more": (lambda s: s["layers"][1].update(x=1), "layer 1: expected an object"),
    "odd rank": (lambda s: s["layers"][1].update(rank=33), "layer 1: rank"),
    "negative rank": (lambda s: s["layers"][0].update(rank=-32), "layer 0: rank"),
    "huge rank": (lambda s: s["layers"][0].update(rank=1 << 40), "layer 0: rank"),
    "fractional rank": (lambda s: s["layers"][0].update(rank=32.0), "'rank'"),
    "true recall": (lambda s: s["layers"][0].update(recall=True), "recall is True"),
    "recall of two": (lambda s: s["layers"][0].update(recall=2), "recall is 2"),
    "recall is text": (lambda s: s["layers"][0].update(recall="1"), "recall is '1'"),
    "negative share": (lambda s: s["layers"][0].update(active=-0.1), "active is -0.1"),
    "endless share": (lambda s: s["layers"][0].update(predicted=float("inf")), "inf"),
    "share that is none": (lambda s: s["layers"][0].update(predicted=float("nan")), "nan"),
    "short curve": (lambda s: s["window"].pop(), "window has 32 values, expected 33"),
    "long curve": (lambda s: s["resident"].append(1), "resident has 34 values"),
    "no curve": (lambda s: s.update(window={}), "'window'"),
    "curve of text": (lambda s: s["window"].__setitem__(3, "0"), "window is '0'"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    edit, message = LIES[lie]
    data = sound()
    check_sparsity(data, LAYERS, "here")
    edit(data)
    with pytest.raises(CorruptModel, match=f"^here.*{message}") as caught:
        check_sparsity(data, LAYERS, "here")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [3, [], "sparse"])
def test_a_manifest_whose_sparsity_is_no_object(model: Path, value: Any) -> None:
    edit_manifest(model, lambda m: m.update(sparsity=value))
    with pytest.raises(CorruptModel, match="'sparsity'"):
        read_model(model)


def test_a_manifest_of_another_model(model: Path) -> None:
    edit_manifest(model, lambda m: m.update(sparsity={**sound(), "layers": sound()["layers"][:1]}))
    with pytest.raises(CorruptModel, match=r"manifest\.json: sparsity: describes 1 layers"):
        read_model(model)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def is_sound(data: dict[str, Any]) -> bool:
    """The rules as one expression, for a value that replaced one of a sound object's."""

    def share(value: Any) -> bool:
        return type(value) in (int, float) and 0 <= value <= 1

    def rank(value: Any) -> bool:
        return type(value) is int and value in range(0, (1 << 24) + 1, 32)

    def layer(value: Any) -> bool:
        keys = {"rank", "recall", "false_positives", "active", "predicted"}
        return (
            isinstance(value, dict)
            and set(value) == keys
            and rank(value["rank"])
            and all(share(value[key]) for key in keys - {"rank"})
        )

    tokens = data["text_tokens"]
    return (
        (type(tokens) is int and tokens in range(1 << 53))
        and data["order"] in ("coactivation", "none")
        and isinstance(data["layers"], list)
        and len(data["layers"]) == LAYERS
        and all(map(layer, data["layers"]))
        and all(
            isinstance(data[curve], list)
            and len(data[curve]) == 33
            and all(map(share, data[curve]))
            for curve in ("window", "resident")
        )
    )


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_value_replaced(data: st.DataObject) -> None:
    changed: Any = copy.deepcopy(sound())
    node = changed
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = data.draw(json_values)
    if is_sound(changed):
        check_sparsity(changed, LAYERS, "here")
    else:
        with pytest.raises(CorruptModel, match="here"):
            check_sparsity(changed, LAYERS, "here")
