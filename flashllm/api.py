"""The verbs load, plan, pull, convert, calibrate and prune: they wire the rooms for callers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Unpack

from flashllm import machine, read_speed_file
from flashllm.convert import convert as convert_checkpoint
from flashllm.convert.calibration import Calibration
from flashllm.convert.calibration import calibrate as calibrate_model
from flashllm.convert.planning import plan_checkpoint, plan_model, plan_shape
from flashllm.convert.pruning import Pruned, prune_model
from flashllm.convert.pruning_methods import Pattern
from flashllm.errors import InvalidInput
from flashllm.generate.opening import Progress
from flashllm.hub import manifests, store
from flashllm.hub.foreign import is_foreign
from flashllm.hub.from_hub import HubPull
from flashllm.hub.pull import is_offline, locate
from flashllm.hub.pull import pull as pull_model
from flashllm.hub.reference import parse_reference
from flashllm.hub.shapes import config_of
from flashllm.hub.workshop import Workshop
from flashllm.llm import LLM
from flashllm.model.memory import KVDtype
from flashllm.model.options import LoadArguments, LoadOptions, Sparse
from flashllm.model.plan import Plan
from flashllm.read_speed import ReadSpeed

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4m", "q4"]


def load(
    model: str | Path,
    *,
    dtype: Dtype = "keep",
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
    **options: Unpack[LoadArguments],
) -> LLM:
    """A model in memory: a flash model's folder, a name in the store, or a foreign checkpoint.

    A GGUF file or a Hugging Face folder is converted to the store the first time, with weights of
    `dtype`, and found there as long as it does not change; on_message then says where. options are
    LoadOptions' fields: mem_budget, n_ctx, threads, backend, kv_dtype, io, sparse, window, draft
    (named as `model` is), draft_tokens. on_progress counts converting and loading. Nothing is
    fetched: see `pull`.

    Raises what LLM.open raises; ModelNotFound if there is no such model, saying how to get it; for
    checkpoints what `convert` raises.
    """
    workshop = _workshop(on_progress, on_message)
    folder = locate(model, workshop, dtype)
    if (draft := options.get("draft")) is not None:
        options["draft"] = locate(draft, workshop, dtype)
    return LLM.open(folder, on_progress=on_progress, on_message=on_message, **options)


def stored_speed(folder: Path) -> ReadSpeed | None:
    """What was measured of this computer with the disk under `folder`; None if nothing was."""
    return read_speed_file.load(read_speed_file.file_for(folder))


def plan(
    model: str | Path,
    *,
    mem_budget: int | str = "auto",
    n_ctx: int | None = None,
    kv_dtype: KVDtype = "f16",
    threads: int | None = None,
    dtype: Dtype = "keep",
    sparse: Sparse | None = None,
    window: int | None = None,
    speed_at: Callable[[Path], ReadSpeed | None] = stored_speed,
) -> Plan:
    """Whether a model fits `mem_budget` with n_ctx tokens of context, and how fast it would run.

    Only headers are read. model: what `load` takes; a known model's name (with :quant, if it is to
    be another), of which nothing needs to be on this computer; or owner/name[:quant], whose headers
    are read on the hub. kv_dtype: what keys and values are to be kept in. dtype: what a checkpoint
    or a known model is to be converted to. mem_budget: bytes, or text such as "6GB" or "0.5x" (of
    the weights); by default what is free now. threads, sparse and window: as `load`'s; only a model
    in the flash format can be planned to run sparse.

    speed_at(folder) is how fast this computer reads memory, and the disk under `folder`: by default
    what `flashllm doctor` has measured, and a plan without a speed if it has not.

    Raises what opening the model raises; ModelNotFound for an unknown one; InvalidInput; for the
    hub's what `pull` raises.
    """
    options = LoadOptions(
        mem_budget, n_ctx, threads, kv_dtype=kv_dtype, sparse=sparse, window=window
    )
    made, folder = _plan(model, options, dtype)
    if not made.fits:
        return made
    if (speed := speed_at(folder)) is None:
        return made.with_warning("no speed, because `flashllm doctor` has not measured this disk")
    return made.with_speed(speed, threads or machine.cpu().usable_cores)


def _plan(model: str | Path, options: LoadOptions, dtype: Dtype) -> tuple[Plan, Path]:
    """The plan of a model, and the folder that it is or will be in."""
    path, home = Path(model).expanduser(), store.models_dir()
    if store.is_model(path):
        return plan_model(path, options), path
    if not is_foreign(path) and (stored := store.in_store(str(model))):
        return plan_model(stored, options), stored
    if options.sparse:
        raise InvalidInput(
            f"{model}: only a model in the flash format can be planned to run sparse; "
            "`flashllm convert --codec row` makes one"
        )
    if is_foreign(path):
        return plan_checkpoint(path, options, dtype=dtype), home
    if known := manifests.find_with_quant(str(model)):
        manifest, quant = known
        made = plan_shape(
            manifest.name,
            config_of(manifest),
            manifest.quant(quant or (None if dtype == "keep" else dtype)),
            options,
            fetched=manifest.download_bytes,
        )
        return made, home
    if (reference := parse_reference(str(model))) is None:
        found = store.find(model)  # an error that says what there is
        return plan_model(found, options), found
    plans: list[Plan] = []

    def plan_view(source: Path, dtype: str, fetched: int) -> Plan:
        plans.append(plan_checkpoint(source, options, dtype=dtype, fetched=fetched))
        return plans[-1]

    HubPull(reference, Workshop(convert_checkpoint, plan_view), offline=is_offline()).plan()
    return dataclasses.replace(plans[-1], name=str(reference)), home


def pull(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    keep_download: bool = False,
    token: str | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """The folder of a model, fetched and converted first if it is not on this computer.

    model: a known name, owner/name[:quant] of the Hugging Face hub, or what `load` takes. Of the
    hub: revision is a branch, a tag or a commit; keep_download leaves the files in Hugging Face's
    cache; token is by default $HF_TOKEN, or the login. on_message announces each stage,
    on_progress counts its bytes. An interrupted download is gone on with by the next call.

    Raises ModelNotFound, DownloadError, CorruptModel (wrong hash), UnsupportedModel, InvalidInput,
    DiskFull, ModelIOError.
    """
    return pull_model(
        model,
        _workshop(on_progress, on_message),
        revision=revision,
        offline=offline,
        keep_download=keep_download,
        token=token,
    )


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: Dtype = "keep",
    pure: bool = False,
    codec: Literal["tile", "row"] = "tile",
    sparse_min: float | None = None,
    restart: bool = False,
    threads: int | None = None,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """Make the flash model directory `target` from a GGUF file or a Hugging Face folder.

    It appears whole or not at all; interrupted, the next call with the same arguments goes on,
    unless it is to restart. dtype: "keep" holds the weights without loss wherever our dtypes can
    express them; "q4" and "q4m" leave the output matrix in q8 unless `pure`. sparse_min: matrices
    of which at least this share is zero become bitmaps and what is not zero, where that is smaller.
    threads: all cores by default. Raises CorruptModel, UnsupportedModel, DiskFull, ModelIOError,
    InvalidInput.
    """
    return convert_checkpoint(
        Path(source),
        Path(target),
        dtype=dtype,
        pure=pure,
        codec=codec,
        sparse_min=sparse_min,
        restart=restart,
        threads=threads,
        on_progress=on_progress,
        on_message=on_message,
    )


def calibrate(
    model: str | Path,
    target: str | Path,
    *,
    text: Sequence[str | Path],
    tokens: int = 20_000,
    recall: float = 0.97,
    rank: int | None = None,
    order: Literal["coactivation", "none"] = "coactivation",
    mem_budget: int | str | None = "auto",
    threads: int | None = None,
    restart: bool = False,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Calibration:
    """Write a ReLU-sparse model to the new folder `target`, with predictors of what fires.

    model: the folder of a flash model of codec `row`, or its name in the store; it is only read.
    text: files to run it over, of which about `tokens` tokens are taken. Of the neurons that fire,
    predictors find a share of `recall` on held-out text; rank is a multiple of 32, by default each
    layer's cheapest. order "coactivation" stores neurons that fire together near each other, where
    that saves reads. mem_budget and threads are as `load`'s.

    Interrupted, the next call with the same arguments goes on, unless it is to restart. on_message
    announces each stage, on_progress counts it. Raises ModelNotFound, InvalidInput,
    UnsupportedModel, CorruptModel, OutOfBudget, DiskFull, ModelIOError, EngineError.
    """
    return calibrate_model(
        store.find(model),
        Path(target),
        [Path(file) for file in text],
        tokens=tokens,
        recall=recall,
        rank=rank,
        order=order,
        options=LoadOptions(mem_budget, threads=threads),
        restart=restart,
        on_progress=on_progress,
        on_message=on_message,
    )


def prune(
    model: str | Path,
    target: str | Path,
    *,
    sparsity: float | str = 0.5,
    method: Literal["magnitude", "wanda", "sparsegpt"] = "wanda",
    text: Sequence[str | Path] = (),
    tokens: int = 32_768,
    dtype: Literal["keep", "f16", "bf16", "q8", "q4"] = "keep",
    mem_budget: int | str | None = "auto",
    threads: int | None = None,
    restart: bool = False,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Pruned:
    """Write a model to the new folder `target`, pruned, as bitmaps and what is not zero: lossy.

    model: the folder of a flash model, or its name in the store; it is only read. sparsity: the
    share of the weights of attention and feed-forward that becomes zero, or a pattern such as
    "2:4": of each 4 side by side 2 stay. method "wanda" (arXiv 2306.11695) and "sparsegpt" (arXiv
    2301.00774) need text, of which about `tokens` tokens are used. dtype: of what stays. mem_budget
    and threads are as `load`'s.

    Interrupted, the next call with the same arguments goes on, unless it is to restart. on_message
    announces each stage, on_progress counts it. Raises ModelNotFound, InvalidInput,
    UnsupportedModel, CorruptModel, OutOfBudget, DiskFull, ModelIOError.
    """
    pattern = Pattern.parse(sparsity) if isinstance(sparsity, str) else Pattern(sparsity)
    return prune_model(
        store.find(model),
        Path(target),
        pattern=pattern,
        method=method,
        text=[Path(file) for file in text],
        tokens=tokens,
        dtype=dtype,
        options=LoadOptions(mem_budget, threads=threads),
        restart=restart,
        on_progress=on_progress,
        on_message=on_message,
    )


def _workshop(on_progress: Progress | None, on_message: Callable[[str], None] | None) -> Workshop:
    return Workshop(
        convert_checkpoint,
        lambda source, dtype, fetched: plan_checkpoint(
            source, LoadOptions(), dtype=dtype, fetched=fetched
        ),
        on_progress or (lambda done, total: None),
        on_message or (lambda text: None),
    )
