"""JSON that is not trusted: bounded in size, without repeated keys, fields of known types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flashllm.errors import CorruptModel

MAX_JSON = 4 << 20
MAX_ITEMS = 1 << 21  # a value of two bytes of JSON takes up to a hundred in memory


def parse_object(
    data: bytes, where: str, limit: int = MAX_JSON, items: int = MAX_ITEMS
) -> dict[str, Any]:
    """The JSON object in `data`, of at most `limit` bytes and about `items` values.

    Raises CorruptModel, beginning with `where`.
    """
    if len(data) > limit:
        raise CorruptModel(f"{where}: {len(data)} bytes of JSON, expected at most {limit}")
    if data.count(b",") + data.count(b"[") + data.count(b"{") > items:
        raise CorruptModel(f"{where}: more than {items} values in its JSON; the file is damaged")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorruptModel(f"{where}: not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise CorruptModel(f"{where}: JSON {type(value).__name__}, expected an object")
    return value


def field(data: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """data[key], which must be of `kind` (true and false are not integers).

    Raises CorruptModel, beginning with `where`.
    """
    value = data.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise CorruptModel(f"{where}: {key!r} is missing or of the wrong type")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key appears twice")
    return made


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")
