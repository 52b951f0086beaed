"""From a GGUF file to a flash model: streamed a layer at a time, published whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from flashllm.convert.dtypes import matrix_dtypes
from flashllm.convert.plan import plan_groups
from flashllm.convert.reading import TensorReader
from flashllm.convert.source import Source, understand
from flashllm.convert.weights import Weights
from flashllm.errors import InvalidInput, ModelIOError
from flashllm.flash.codecs import PACK_FFN, pack_matrix
from flashllm.flash.layout import TILE_ROWS
from flashllm.flash.manifest import SMALL_FILE, Manifest
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.units_file import GroupPlan
from flashllm.flash.writer import ModelWriter
from flashllm.formats.gguf import read_gguf
from flashllm.generate.tokenizer import files_from_gguf
from flashllm.model.roles import FEED_FORWARD

DTYPES = ("keep", "f32", "f16", "bf16", "q8", "q4")

OnProgress = Callable[[int, int], None]


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    codec: str = "tile",
    name: str | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert the GGUF file `source` to a flash model in the new folder `target`; returns it.

    dtype "keep" holds every block as it is; others requantise all matrices, and the manifest says
    what that lost. codec "row" is for ReLU-sparse models; there a quantised down is requantised.
    on_progress is told bytes done and in total; what it raises stops the conversion, and nothing
    is left behind then, nor after any other failure.

    Raises InvalidInput (unknown option, target exists), ModelNotFound, CorruptModel (also for NaN
    weights), UnsupportedModel, DiskFull, ModelIOError.
    """
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if codec not in PACK_FFN:
        raise InvalidInput(f"codec {codec!r} is unknown; use one of {', '.join(PACK_FFN)}")
    checkpoint = read_gguf(source)
    understood = understand(checkpoint)
    tokenizer = files_from_gguf(checkpoint.metadata)
    progress = _Progress(understood, on_progress)
    with (
        TensorReader(checkpoint.files) as reader,
        ModelWriter(target, overwrite=overwrite) as writer,
    ):
        dtypes = matrix_dtypes(understood, dtype, codec)
        weights = Weights(understood, reader, dtypes, progress.advance)
        plans = plan_groups(understood.config, dtypes, codec)
        writer.check_room(sum(plan.nbytes for plan in plans))
        sha256 = _sha256(source, progress.advance)
        for file_name, data in tokenizer.items():
            writer.add_file(file_name, data)
        writer.add_file(SMALL_FILE, _small(understood, weights))
        writer.add_units(plans, _units(weights, plans))
        metadata = checkpoint.metadata
        licence = metadata.get("general.license")
        return writer.publish(
            Manifest(
                name=_printable(name or metadata.get("general.name") or source.stem),
                created_by=_created_by(),
                config=understood.config.to_json(),
                codec=codec,
                dtype=dtype,
                groups=writer.groups,
                source={"path": source.name, "sha256": sha256, "format": "gguf"},
                licence=_printable(licence) if licence else None,
                loss=weights.loss.report(),
                files=writer.files,
            )
        )


class _Progress:
    """Bytes read so far, of the files' hashes and of their tensors."""

    def __init__(self, source: Source, on_progress: OnProgress | None):
        checkpoint = source.checkpoint
        tensors = checkpoint.tensors.values()
        self.total = sum(file.stat().st_size for file in checkpoint.files)
        self.total += sum(tensor.nbytes for tensor in tensors)
        self.done = 0
        self._on_progress = on_progress or (lambda done, total: None)

    def advance(self, nbytes: int) -> None:
        self.done += nbytes
        self._on_progress(self.done, self.total)


def _units(weights: Weights, plans: list[GroupPlan]) -> Iterator[NDArray[np.uint8]]:
    """Every unit of every group, in order."""
    for plan in plans:
        prefix = plan.name.rpartition(".")[0]
        prefix = f"{prefix}." if prefix else ""
        for part in plan.parts:
            if isinstance(part, MatrixPart):
                yield from _matrix_units(weights, part, prefix + part.role)
            else:
                yield from _ffn_units(weights, part, [prefix + role for role in FEED_FORWARD])


def _matrix_units(weights: Weights, part: MatrixPart, role: str) -> Iterator[NDArray[np.uint8]]:
    for piece in weights.pieces(role, part.panels_per_unit * TILE_ROWS):
        yield from pack_matrix(piece, part)


def _ffn_units(weights: Weights, part: FFNPart, roles: list[str]) -> Iterator[NDArray[np.uint8]]:
    gate = weights.matrix(roles[0]) if part.gate_dtype else None
    up = weights.matrix(roles[1])
    if part.codec == "row":
        down = weights.transposed(roles[2], part.down_dtype)
    else:
        down = weights.matrix(roles[2])
    yield from PACK_FFN[part.codec](gate, up, down, part)


def _small(source: Source, weights: Weights) -> bytes:
    """The vectors of the model as safetensors, named by role."""
    vectors = {role: weights.vector(role) for role in source.vectors()}
    return safetensors.numpy.save(vectors)


def _sha256(path: Path, on_bytes: Callable[[int], None]) -> str:
    hasher = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while piece := file.read(4 << 20):
                hasher.update(piece)
                on_bytes(len(piece))
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
    return hasher.hexdigest()


def _printable(text: object) -> str:
    """`text` without characters that would disturb a terminal, of a sensible length."""
    return "".join(c for c in str(text) if c.isprintable())[:200]


def _created_by() -> str:
    try:
        return f"flashllm {importlib.metadata.version('flashllm')}"
    except importlib.metadata.PackageNotFoundError:
        return "flashllm"
