"""From a checkpoint to a flash model: streamed, by all cores, published whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.numpy

from flashllm import machine
from flashllm.convert.dtypes import matrix_dtypes
from flashllm.convert.loss import Loss
from flashllm.convert.pipeline import run_ordered
from flashllm.convert.plan import plan_groups
from flashllm.convert.provenance import Provenance
from flashllm.convert.reading import TensorReader
from flashllm.convert.source import Source, understand
from flashllm.convert.units import Made, group_jobs, group_weights
from flashllm.convert.weights import Weights
from flashllm.convert.zeros import densities
from flashllm.errors import InvalidInput, ModelIOError
from flashllm.flash.codecs import PACK_FFN, Bytes
from flashllm.flash.manifest import SMALL_FILE, VERSION, Manifest
from flashllm.flash.quantize import SEARCH_VERSION
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.flash.writer import ModelWriter
from flashllm.formats.opening import open_checkpoint
from flashllm.generate.tokenizer_gguf import files_from_gguf
from flashllm.generate.tokenizer_hf import files_from_hf

DTYPES = ("keep", "f32", "f16", "bf16", "q8", "q4m", "q4")

ROOM = 128 << 20
"""Bytes of finished units that may wait to be written."""

SPARE_THREADS = 2
"""Threads beyond the cores, for those that wait for the disk."""

GO_ON = "run the same command again to go on from there"

OnProgress = Callable[[int, int], None]


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str = "keep",
    codec: str = "tile",
    pure: bool = False,
    sparse_min: float | None = None,
    name: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
    threads: int | None = None,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Convert a GGUF file or a Hugging Face folder to a flash model in the new folder `target`.

    dtype "keep" holds weights as they are wherever our dtypes can; others requantise all matrices
    (q4 and q4m: all but the head, which gets q8, unless `pure`), and the manifest says what was
    lost. codec "row" is for ReLU-sparse models; there a quantised down is requantised. threads: by
    default as many as there are cores. Returns the folder; the source is only read.

    Interrupted, killed, or out of disk, a conversion is gone on with by the next with the same
    source, target and options, to the same bytes; restart starts over. on_progress is told bytes
    done and in total, and may raise to stop; on_message, what is worth saying.

    Raises InvalidInput (unknown option, target exists or in use), ModelNotFound, CorruptModel
    (also for weights that are not finite), UnsupportedModel: after these nothing is left behind;
    DiskFull, ModelIOError.
    """
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    if codec not in PACK_FFN:
        raise InvalidInput(f"codec {codec!r} is unknown; use one of {', '.join(PACK_FFN)}")
    if sparse_min is not None and (codec != "tile" or not 0 <= sparse_min <= 1):
        raise InvalidInput(
            f"bitmaps from a sparsity of {sparse_min}: choose 0 to 1, and the codec tile"
        )
    say = on_message or (lambda text: None)
    checkpoint = open_checkpoint(source)
    understood = understand(checkpoint)
    if checkpoint.kind == "gguf":
        tokenizer = files_from_gguf(checkpoint.metadata)
    else:
        tokenizer = files_from_hf(checkpoint.path)
    provenance = Provenance.of(checkpoint)
    options = {"dtype": dtype, "codec": codec, "pure": pure, "sparse_min": sparse_min}
    versions = [created_by(), VERSION, SEARCH_VERSION]
    writer = ModelWriter(
        target,
        overwrite=overwrite,
        identity={"source": provenance.identity(), "options": options, "versions": versions},
        restart=restart,
        say=say,
    )
    dtypes = matrix_dtypes(understood, dtype, codec, pure=pure)
    threads = threads or machine.cpu().usable_cores
    loss = Loss()
    try:
        with TensorReader(checkpoint.files) as reader, writer:
            weights = Weights(understood, reader, dtypes)
            pruned = {}
            if sparse_min is not None:
                say("counting the weights that are zero")
                nbytes, report = _source_bytes(understood), on_progress or _nothing
                found = densities(
                    weights,
                    threads + SPARE_THREADS,
                    lambda done, total: report(nbytes * done // total, nbytes),
                )
                pruned = {role: share for role, share in found.items() if 1 - share >= sparse_min}
            plans = plan_groups(understood.config, dtypes, codec, pruned)
            writer.check_room(units_bytes(plans))
            for file_name, data in tokenizer.items():
                writer.add_file(file_name, data)
            vectors = {role: weights.vector(role) for role in understood.vectors()}
            writer.add_file(SMALL_FILE, safetensors.numpy.save(vectors))
            _add_groups(
                writer,
                weights,
                plans,
                loss,
                _Progress(understood, plans, weights, on_progress),
                threads,
                say,
            )
            metadata = checkpoint.metadata
            licence = metadata.get("general.license")
            return writer.publish(
                Manifest(
                    name=_printable(name or metadata.get("general.name") or _stem(understood)),
                    created_by=created_by(),
                    config=understood.config.to_json(),
                    codec="bitmap" if any(plan.varies for plan in plans) else codec,
                    dtype=dtype,
                    groups=writer.groups,
                    source=provenance.to_json(),
                    licence=_printable(licence) if licence else None,
                    loss=loss.report(),
                    files=writer.files,
                )
            )
    except ModelIOError as error:
        if not writer.kept:
            raise
        raise type(error)(f"{error}; {GO_ON}", error.path, error.offset) from None


def _nothing(done: int, total: int) -> None:
    """Nobody wants to know."""


def _source_bytes(source: Source) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in source.checkpoint.tensors.values())


class _Progress:
    """How much of the source's weights is converted, in bytes."""

    def __init__(
        self,
        source: Source,
        plans: list[GroupPlan],
        weights: Weights,
        on_progress: OnProgress | None,
    ):
        self._total = _source_bytes(source)
        self._weights = sum(group_weights(weights, plan) for plan in plans)
        self._done = 0
        self._on_progress = on_progress or _nothing

    def advance(self, weights: int) -> None:
        """Count weights that are converted."""
        self._done += weights
        self._on_progress(self._total * self._done // self._weights, self._total)


def _add_groups(
    writer: ModelWriter,
    weights: Weights,
    plans: list[GroupPlan],
    loss: Loss,
    progress: _Progress,
    threads: int,
    say: Callable[[str], None],
) -> None:
    """Write every group that is not there yet."""
    notes = writer.begin(plans)
    for noted in notes:
        loss.add_json(noted)
    if notes:
        say(f"going on after {len(notes)} of {len(plans)} groups of an earlier conversion")
        progress.advance(sum(group_weights(weights, plan) for plan in plans[: len(notes)]))
    rest = plans[len(notes) :]
    jobs = (job for plan in rest for job in group_jobs(weights, plan))
    with contextlib.closing(run_ordered(jobs, threads + SPARE_THREADS, ROOM)) as stream:
        for _ in rest:
            lost = Loss()
            writer.add_group(_units(stream, lost, progress), lost.to_json)
            loss.add_json(lost.to_json())


def _units(stream: Iterator[Made], lost: Loss, progress: _Progress) -> Iterator[Bytes]:
    """The units of the jobs in `stream`, whose losses and weights are counted first."""
    for made in stream:
        for role, sums in made.lost:
            lost.add(role, sums)
        progress.advance(made.weights)
        yield from made.units


def created_by() -> str:
    """What the manifest says made the model."""
    try:
        return f"flashllm {importlib.metadata.version('flashllm')}"
    except importlib.metadata.PackageNotFoundError:
        return "flashllm"


def _stem(source: Source) -> str:
    """The name of the file, or of the folder."""
    path = source.path.absolute()
    return path.stem if source.checkpoint.kind == "gguf" else path.name


def _printable(text: Any) -> str:
    """`text` without characters that would disturb a terminal, of a sensible length."""
    return "".join(c for c in str(text) if c.isprintable())[:200]
