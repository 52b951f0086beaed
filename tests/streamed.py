"""Tiny models of many small units, read in reads as small: they stream as large models do."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from random_model import random_weights, write_model

from flashllm.cache import pinned, policy
from flashllm.cache.policy import Residency, Scan, Span, pinned_scan, smallest_room
from flashllm.errors import ModelIOError
from flashllm.flash import layout
from flashllm.flash.format import FlashModel, Group, read_model
from flashllm.flash.reader import UnitReader
from flashllm.model import scan as scanning
from flashllm.model.config import ModelConfig
from flashllm.model.specs import AttentionSpec, BlockSpec, FFNSpec, LayerKind, NormSpec, RopeSpec

LAYERS = 5
VOCAB = 2048
UNITS_FILE = "units-00001.safetensors"


def small_reads(patch: pytest.MonkeyPatch) -> None:
    """Make reads, what is read ahead, pieces of the head and buffers about 1/100 of their size."""
    patch.setattr(policy, "READ_BYTES", 20 << 10)
    patch.setattr(policy, "AHEAD_BYTES", 150 << 10)
    patch.setattr(scanning, "HEAD_PIECE", 64 << 10)
    patch.setattr(scanning, "FFN_PIECE", 40 << 10)
    patch.setattr(pinned, "CHUNK_BYTES", 100 << 10)


def write(
    folder: Path,
    *,
    codec: str = "tile",
    tied: bool = False,
    positions: bool = False,
    dtype: str = "f32",
    activation: str = "silu",
    parallel: bool = False,
    row_unit: int = 2 << 10,
) -> Path:
    """A model of 2 MB in about 200 units. With `positions` it is of OPT's kind.

    parallel: its attention and feed-forward read the same, as Falcon's do. row_unit: least bytes of
    a unit of codec `row`.
    """
    rope = None if positions else RopeSpec(1e4, 16, "interleaved")
    config = ModelConfig(
        family="opt" if positions else "llama",
        hidden_size=64,
        vocab_size=VOCAB,
        context_length=96,
        norm=NormSpec("layer" if positions else "rms", 1e-5, bias=positions),
        attention=AttentionSpec(4, 2, 16, 0.25, qkv_bias=positions, out_bias=positions),
        ffn=FFNSpec(192, "relu" if positions else activation, gated=not positions, bias=positions),
        kinds=(LayerKind(rope),),
        layers=(0,) * LAYERS,
        block=BlockSpec(parallel=parallel, shared_norm=parallel),
        tied_head=tied,
        learned_positions=positions,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "UNIT_TARGET", 8 << 10)
        patch.setattr(layout, "ROW_UNIT", row_unit)
        return write_model(folder, config, random_weights(config, 5), dtype, codec)


@dataclasses.dataclass(frozen=True)
class Streamed:
    """A model, the order in which its units are used, and the true bytes of each."""

    model: FlashModel
    scan: Scan
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> Streamed:
        """The model in `folder`."""
        model = read_model(folder)
        config = ModelConfig.from_json(model.manifest.config)
        files = {group.file for group in model.groups.values()}
        return cls(
            model,
            scanning.scan_of(config, model.offsets, model.manifest.codec),
            {name: (folder / name).read_bytes() for name in files},
        )

    def residency(self, share: float) -> Residency:
        """What stays if `share` of what is between the smallest room and all of it is given."""
        least = smallest_room(self.scan)
        return pinned_scan(self.scan, least + int(share * (self.scan.nbytes - least)))

    def residencies(self) -> list[Residency]:
        """From all of it to as little as works."""
        shares = (0.9, 0.6, 0.3, 0.1, 0.0)
        return [pinned_scan(self.scan, None), *(self.residency(share) for share in shares)]

    def unit(self, group: str, unit: int) -> bytes:
        """A unit's bytes in the file."""
        found = self.model.group(group)
        begin = found.file_offset + int(found.offsets[unit])
        return self.files[found.file][begin : begin + int(found.lengths[unit])]

    def check(self, group: str, first: int, addresses: np.ndarray) -> None:
        """The memory at each address holds that unit of the group, from unit `first` on."""
        for unit, address in enumerate(addresses.tolist(), first):
            expected = self.unit(group, unit)
            assert address, f"unit {unit} of {group} is nowhere"
            assert ctypes.string_at(address, len(expected)) == expected, f"unit {unit} of {group}"


class FailingReader(UnitReader):
    """Reads of the groups in `broken` fail, as those of a bad disk do."""

    def __init__(self, model: FlashModel):
        super().__init__(model, "pread")
        self.broken: set[str] = set()

    def read_run(self, group: Group, first: int, count: int, out: np.ndarray) -> None:
        self._fail(group)
        super().read_run(group, first, count, out)

    def read_units(self, group: Group, ids: list[int], out: list[np.ndarray]) -> None:  # type: ignore[override]
        self._fail(group)
        super().read_units(group, ids, out)

    def _fail(self, group: Group) -> None:
        if group.name in self.broken:
            raise ModelIOError(f"{group.file}: cannot read: injected", self.model.path, 0)


def damage(streamed: Streamed, group: str, unit: int) -> None:
    """Flip a bit of a unit in its file; the same again undoes it."""
    found = streamed.model.group(group)
    at = found.file_offset + int(found.offsets[unit])
    with (streamed.model.path / found.file).open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def stage_of(scan: Scan, group: str) -> int:
    """The first stage that has a span of `group`."""
    return next(i for i, stage in enumerate(scan.stages) if group in [span.group for span in stage])


def streamed_units(residency: Residency, stage: int) -> list[tuple[Span, int]]:
    """The spans of a stage, each with how many units stay."""
    return list(zip(residency.scan.stages[stage], residency.pinned[stage], strict=True))
