"""What a manifest says of a sparse model: its predictors' figures and how neurons are used."""

from __future__ import annotations

import math
from typing import Any

from flashllm.documents import field
from flashllm.errors import CorruptModel
from flashllm.flash.parts import MAX_SIDE

ORDERS = ("coactivation", "none")
MAX_WINDOW = 32
"""The curves of a sparse model are for windows of 0 to so many tokens."""

_KEYS = {"text_tokens", "order", "layers", "window", "resident"}
_SHARES = ("recall", "false_positives", "active", "predicted")


def check_sparsity(data: dict[str, Any], layers: int, where: str) -> None:
    """Hold a manifest's `sparsity` to docs/format.md, for a model of so many layers.

    Raises CorruptModel, beginning with `where`.
    """
    if set(data) != _KEYS:
        raise CorruptModel(f"{where}: has the keys {sorted(data)}, expected {sorted(_KEYS)}")
    if not 0 <= field(data, "text_tokens", int, where) < 1 << 53:
        raise CorruptModel(f"{where}: text_tokens is out of range")
    if data["order"] not in ORDERS:
        raise CorruptModel(f"{where}: order is {data['order']!r:.40}, expected one of {ORDERS}")
    described = field(data, "layers", list, where)
    if len(described) != layers:
        raise CorruptModel(f"{where}: describes {len(described)} layers, the model has {layers}")
    for i, layer in enumerate(described):
        _check_layer(layer, f"{where}: layer {i}")
    for curve in ("window", "resident"):
        shares = field(data, curve, list, where)
        if len(shares) != MAX_WINDOW + 1:
            raise CorruptModel(
                f"{where}: {curve} has {len(shares)} values, expected {MAX_WINDOW + 1}"
            )
        for share in shares:
            _check_share(curve, share, where)


def _check_layer(layer: Any, where: str) -> None:
    if not isinstance(layer, dict) or set(layer) != {"rank", *_SHARES}:
        raise CorruptModel(f"{where}: expected an object with rank, {', '.join(_SHARES)}")
    rank = field(layer, "rank", int, where)
    if not 0 <= rank <= MAX_SIDE or rank % 32:
        raise CorruptModel(f"{where}: rank is not a multiple of 32 from 0 to {MAX_SIDE}")
    for name in _SHARES:
        _check_share(name, layer[name], where)


def _check_share(name: str, value: Any, where: str) -> None:
    is_number = type(value) is int or (isinstance(value, float) and math.isfinite(value))
    if not is_number or not 0 <= value <= 1:
        raise CorruptModel(f"{where}: {name} is {value!r:.40}, expected a share from 0 to 1")
