"""Ways to make a flash model lie: its manifest or its header changed and signed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

UNITS = "units-00001.safetensors"


def edit_manifest(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and sign it again, as somebody who means harm would."""
    file = model / "manifest.json"
    data = json.loads(file.read_text())
    edit(data)
    write_manifest(model, data)


def write_manifest(model: Path, data: dict[str, Any]) -> None:
    """Write `data` as the manifest, signed."""
    data.pop("checksum", None)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    data["checksum"] = xxhash.xxh3_64_hexdigest(text.encode())
    (model / "manifest.json").write_text(json.dumps(data))


def edit_header(model: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of the units file, its length kept."""
    file = model / UNITS
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    edit(header)
    text = json.dumps(header, separators=(",", ":")).encode()
    assert len(text) <= length
    file.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])
