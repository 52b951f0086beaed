"""Opening a model directory for conversation: weights, words, template, identity."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from flashllm import heap
from flashllm.errors import Cancelled, CorruptModel, InvalidInput, ModelIOError, ModelNotFound
from flashllm.generate.drafting import DraftModel
from flashllm.generate.engine import Engine
from flashllm.generate.loop import Decoder
from flashllm.generate.model_memory import draft_kv_bytes
from flashllm.generate.prompt import PromptEncoder
from flashllm.generate.session import ChatModel
from flashllm.generate.template import ChatTemplate, read_template
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.loader import describe, load_decoder
from flashllm.model.options import Backend, LoadOptions

Progress = Callable[[int, int], None]

_MAX_MANIFEST = 64 << 20


def open_model(
    folder: Path,
    engine: Engine,
    options: LoadOptions,
    *,
    taken: int = 0,
    on_progress: Progress | None = None,
) -> ChatModel:
    """The model in `folder`, loaded by the engine's thread.

    taken: bytes that other models in this process hold. Raises ModelNotFound, CorruptModel,
    UnsupportedModel, ModelIOError, OutOfBudget, InvalidInput.
    """
    identity = _identity(folder, options.backend)
    tokenizer = Tokenizer.from_dir(folder)
    heap.trim()
    prompts = _prompts(folder, tokenizer)

    draft, held = None, 0
    if options.draft is not None:
        draft, held = _open_draft(folder, tokenizer, engine, options, taken)

    def load(progress: Progress) -> Decoder:
        return load_decoder(folder, options, taken=taken + held, on_progress=progress)

    try:
        decoder = _load(engine, load, on_progress)
    except BaseException:
        if draft is not None:
            engine.call(draft.decoder.close)
        raise
    model = ChatModel(decoder, tokenizer, prompts, identity, draft)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        engine.call(model.close)
        raise CorruptModel(
            f"{folder}: the tokeniser has {tokenizer.vocab_size} tokens but the model only "
            f"{decoder.config.vocab_size}; convert it again"
        )
    return model


def _open_draft(
    folder: Path, tokenizer: Tokenizer, engine: Engine, options: LoadOptions, taken: int
) -> tuple[DraftModel, int]:
    """The draft of the model in `folder`, and what it holds of memory beside it, in bytes.

    It takes its part of the budget before the model does, because it runs several times a step.
    Raises as open_model does; InvalidInput for a draft of another kind of text.
    """
    path = Path(options.draft or "")
    config, weights = describe(folder)
    n_ctx = options.context(config)
    own = dataclasses.replace(
        options,
        mem_budget=options.budget(weights),
        n_ctx=min(n_ctx, describe(path)[0].context_length),
        sparse=None,
        window=None,
        draft=None,
    )
    if not Tokenizer.from_dir(path).resembles(tokenizer):
        raise InvalidInput(
            f"{path}: its tokens are not those of {folder}; choose a smaller model of the same "
            "family as draft"
        )
    heap.trim()

    def load(progress: Progress) -> Decoder:
        return load_decoder(path, own, taken=taken, on_progress=progress)

    decoder = _load(engine, load, None)
    held = decoder.resident_bytes + decoder.scratch_bytes + draft_kv_bytes(decoder, n_ctx)
    return DraftModel(decoder, options.draft_tokens), held


def _load(
    engine: Engine, load: Callable[[Progress], Decoder], on_progress: Progress | None
) -> Decoder:
    """Run `load` on the engine's thread; a caller who leaves (Ctrl-C) leaves nothing behind."""
    loaded: list[Decoder] = []
    abandoned = threading.Event()

    def progress(done: int, total: int) -> None:
        if abandoned.is_set():
            raise Cancelled("loading was interrupted")
        if on_progress is not None:
            on_progress(done, total)

    def discard() -> None:
        for decoder in loaded:
            decoder.close()

    try:
        engine.call(lambda: loaded.append(load(progress)))
    except BaseException:
        abandoned.set()
        engine.post(discard)
        raise
    return loaded[0]


def _prompts(folder: Path, tokenizer: Tokenizer) -> PromptEncoder | None:
    source = read_template(folder)
    if source is None:
        return None
    bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
    eos = "" if tokenizer.eos_id is None else tokenizer.token_text(tokenizer.eos_id)
    return PromptEncoder(ChatTemplate(source, bos_token=bos, eos_token=eos), tokenizer)


def _identity(folder: Path, backend: Backend) -> str:
    """sha256 of what decides the numbers in a KV cache: weights, shape and backend."""
    file = folder / "manifest.json"
    try:
        if file.stat().st_size > _MAX_MANIFEST:
            raise CorruptModel(f"{file}: larger than {_MAX_MANIFEST >> 20} MiB")
        manifest = json.loads(file.read_bytes())
        parts = [manifest["config"], manifest["files"], backend]
    except FileNotFoundError:
        raise ModelNotFound(
            f"{folder} is not a flash model (it has no manifest.json); "
            "`flashllm convert` makes one from a GGUF file"
        ) from None
    except OSError as error:
        raise ModelIOError(f"{file}: {error.strerror}", file) from error
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CorruptModel(f"{file}: not a flash model's manifest; convert it again") from None
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
