"""The container of units: a safetensors file whose data begins on a 4 KiB boundary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from flashllm.flash.layout import ALIGNMENT

ITEM_BYTES = {"U8": 1, "I64": 8, "U64": 8}


def build_header(tensors: Sequence[tuple[str, str, int]], length: int = 0) -> bytes:
    """The header of one-dimensional tensors (name, dtype, elements), in file order.

    Its length is a multiple of 4096, so that data begins on a 4 KiB offset, and at least `length`,
    which is one.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "flashllm-units", "version": "1"}}
    end = 0
    for name, dtype, count in tensors:
        begin, end = end, end + count * ITEM_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": [count], "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * max(-(8 + len(text)) % ALIGNMENT, length - 8 - len(text))
    return len(text).to_bytes(8, "little") + text
