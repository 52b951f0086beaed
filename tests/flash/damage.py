"""Ways to make a flash model lie: its manifest or its header changed and signed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from flashllm.flash.format import index_checksum, read_model

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


def edit_unit(model: Path, group: str, unit: int, edit: Callable[[np.ndarray], object]) -> None:
    """Change a unit, its length kept, and sign it again in the index and the manifest."""
    opened = read_model(model).group(group)
    file = model / opened.file
    data = bytearray(file.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    begin = opened.file_offset + int(opened.offsets[unit])
    content = np.frombuffer(data, np.uint8)[begin : begin + int(opened.lengths[unit])]
    edit(content)
    checksums = opened.checksums.copy()
    checksums[unit] = xxhash.xxh3_64_intdigest(content.tobytes())
    del content
    place = 8 + int.from_bytes(data[:8], "little") + header[f"{group}.xxh3"]["data_offsets"][0]
    data[place : place + checksums.nbytes] = checksums.tobytes()
    file.write_bytes(data)
    signed = index_checksum(opened.offsets, opened.lengths, checksums)
    edit_manifest(model, lambda m: m["groups"][group].update(index_xxh3=signed))
