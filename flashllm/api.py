"""The verbs of the package, load, pull and convert: they wire the rooms for callers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from flashllm.convert import convert as convert_file
from flashllm.generate.opening import Backend, Progress
from flashllm.hub import store
from flashllm.hub.pull import pull as pull_model
from flashllm.llm import LLM

Dtype = Literal["keep", "f32", "f16", "bf16", "q8", "q4"]


def load(
    model: str | Path,
    *,
    mem_budget: int | str | None = None,
    threads: int | None = None,
    backend: Backend = "cpu",
    n_ctx: int | None = None,
    on_progress: Progress | None = None,
) -> LLM:
    """The model in a flash model directory, or of a name in the store, in memory.

    The other arguments are LLM.open's. Raises what LLM.open raises; ModelNotFound if there is no
    such directory or name, saying how to get it.
    """
    return LLM.open(
        store.find(model),
        mem_budget=mem_budget,
        threads=threads,
        backend=backend,
        n_ctx=n_ctx,
        on_progress=on_progress,
    )


def pull(
    name: str,
    *,
    offline: bool = False,
    on_progress: Progress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Path:
    """The folder of the known model `name`, fetched and converted first if the store lacks it.

    on_message announces each stage, on_progress counts it. Raises ModelNotFound, DownloadError,
    CorruptModel (wrong hash), DiskFull, ModelIOError; interrupted, it leaves nothing behind.
    """
    return pull_model(
        name,
        convert=convert_file,
        offline=offline,
        on_progress=on_progress,
        on_message=on_message,
    )


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: Dtype = "keep",
    codec: Literal["tile", "row"] = "tile",
    on_progress: Progress | None = None,
) -> Path:
    """Make the flash model directory `target` from the GGUF file `source`, whole or not at all.

    dtype: "keep" holds GGUF's own blocks without loss. Raises CorruptModel, UnsupportedModel,
    DiskFull, ModelIOError, InvalidInput.
    """
    return convert_file(
        Path(source), Path(target), dtype=dtype, codec=codec, on_progress=on_progress
    )
