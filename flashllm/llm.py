"""LLM: a model in memory, and the sessions that talk with it. What desktop apps import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, Unpack

from flashllm.closing import Closing
from flashllm.generate import engine, session_file
from flashllm.generate import score as scoring
from flashllm.generate.conversation import Session
from flashllm.generate.golden import Window, read_golden
from flashllm.generate.model_memory import held
from flashllm.generate.opening import Progress, open_model
from flashllm.generate.reply import Reply
from flashllm.generate.sampling import SamplingOptions, SamplingParams
from flashllm.generate.service import Service
from flashllm.generate.session import ChatModel, SessionState
from flashllm.generate.template import Message
from flashllm.model.memory import kv_bytes
from flashllm.model.options import LoadArguments, LoadOptions, Sparse

Result = TypeVar("Result")

__all__ = ["LLM", "Message", "Reply", "Session"]


class LLM(Closing):
    """A model in memory. Any thread may call it; work queues to the process's one engine thread.

    name: the model directory's. config: the model's shape. tokenizer: the model's. n_ctx: tokens of
    context of sessions that do not say. kv_dtype: what keys and values are kept in. sparse: how it
    runs sparse, None if it does not.

    Close it, or use it in a `with` block: its replies stop and its memory is freed.
    """

    def __init__(
        self,
        model: ChatModel,
        *,
        name: str = "model",
        n_ctx: int | None = None,
        sparse: Sparse | None = None,
        follows_memory: bool = False,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        """Serve `model`, and close it in the end. `LLM.open` does this for a model directory.

        follows_memory: use less when other programs need memory, more when they leave it;
        on_message then says when that changes.
        """
        self.name = name
        self.config = model.decoder.config
        self.tokenizer = model.tokenizer
        self.kv_dtype = model.decoder.kv_dtype
        self.sparse = sparse
        self.n_ctx = LoadOptions(n_ctx=n_ctx).context(self.config)
        self._service = Service(
            model, name, self.n_ctx, follows_memory=follows_memory, on_message=on_message
        )

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        on_progress: Progress | None = None,
        on_message: Callable[[str], None] | None = None,
        **options: Unpack[LoadArguments],
    ) -> LLM:
        """Load the flash model in the directory `path`; options are LoadOptions' fields.

        on_progress(loaded, in all) is called on another thread, and so is on_message, when a budget
        that follows the system's memory has changed. Raises ModelNotFound, CorruptModel,
        UnsupportedModel, ModelIOError, InvalidInput; OutOfBudget if not even reading the weights
        as they are needed fits the memory allowed.
        """
        folder, asked = Path(path), LoadOptions(**options)
        with engine.borrowed() as runner:
            model = open_model(folder, runner, asked, taken=held(), on_progress=on_progress)
            try:
                return cls(
                    model,
                    name=folder.name,
                    n_ctx=asked.n_ctx,
                    sparse=asked.sparse,
                    follows_memory=asked.mem_budget == "auto",
                    on_message=on_message,
                )
            except BaseException:
                runner.call(model.close)
                raise

    @property
    def mem_budget(self) -> int | None:
        """Bytes that this process may use; None for no limit."""
        return self._service.model.decoder.budget

    @property
    def io_fallback(self) -> str | None:
        """Why weights are not read in the way asked for, in a sentence, or None."""
        return self._service.model.decoder.fallback

    @property
    def weight_bytes(self) -> int:
        """Memory that the model's weights take: those that stay, and room for the others."""
        return self._service.model.decoder.resident_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory that the KV caches of the open sessions take once they are full."""
        return self._service.memory.kv_bytes

    @property
    def can_chat(self) -> bool:
        """Whether the model has a chat template; without one it can only `complete` text."""
        return self._service.model.prompts is not None

    def resize(self, mem_budget: int | str | None, on_progress: Progress | None = None) -> None:
        """Use as much memory as `mem_budget` says (see LoadOptions) from now on.

        A reply under way pauses for it between two layers; it stays the same, as all results do.
        on_progress(bytes read, in all) is called on another thread. Raises OutOfBudget, and nothing
        has changed; InvalidInput, ModelIOError, CorruptModel, EngineError.
        """
        memory, tell = self._service.memory, on_progress or (lambda done, total: None)
        budget = LoadOptions(mem_budget).budget(self._service.model.decoder.weight_bytes)
        follows = mem_budget == "auto"
        self._service.call(lambda: memory.resize(budget, follows, tell), urgent=True)

    def session(
        self,
        system: str | None = None,
        *,
        messages: Sequence[Message] = (),
        n_ctx: int | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Session:
        """A new conversation, with its own KV cache.

        system: the system prompt. messages: what was said before. n_ctx: tokens of context.
        sampling: settings for its replies, which each call may override.

        Raises OutOfBudget if the KV cache does not fit; InvalidInput.
        """
        params = SamplingParams().with_options(sampling)
        before = [] if system is None else [Message("system", system)]
        context = self.n_ctx if n_ctx is None else self._context(n_ctx)
        return self._adopt(SessionState(self._service.model, context, [*before, *messages]), params)

    def load_session(
        self, path: Path | str, *, n_ctx: int | None = None, **sampling: Unpack[SamplingOptions]
    ) -> Session:
        """The conversation that Session.save wrote to `path`.

        With the same model it goes on at once; with another, its text is read anew. Raises
        ModelIOError, CorruptModel, OutOfBudget, InvalidInput (saved with another kv_dtype).
        """
        params = SamplingParams().with_options(sampling)
        context = None if n_ctx is None else self._context(n_ctx)
        model = self._service.model
        state = self._service.call(lambda: session_file.load(Path(path), model, context))
        return self._adopt(state, params)

    def complete(self, prompt: str, **sampling: Unpack[SamplingOptions]) -> Reply:
        """Continue `prompt` as it is: no template; control tokens written in it count as such.

        Returns at once; errors are raised to whoever reads the reply.
        """
        session = self.session(**sampling)
        return session._start(lambda state, call: state.complete(prompt, call), {})

    def generate(
        self, prompt: str, *, raw: bool = False, **sampling: Unpack[SamplingOptions]
    ) -> Reply:
        """Answer one message, in a session of its own; or, if `raw`, `complete` it."""
        if raw:
            return self.complete(prompt, **sampling)
        return self.session(**sampling).stream(prompt)

    def score(
        self,
        text: str,
        *,
        window: int = scoring.DEFAULT_WINDOW,
        on_progress: Progress | None = None,
    ) -> scoring.Score:
        """The perplexity of `text`, read in windows of so many tokens.

        on_progress: told, on another thread, of the tokens read and in all; what it raises ends
        the scoring. Raises InvalidInput if there is nothing to predict; OutOfBudget.
        """
        tokens = self.tokenizer.encode(text)
        windows = scoring.split_windows(len(tokens), min(window, self.config.context_length))
        decoder = self._service.model.decoder
        return self._scored(
            windows, on_progress, lambda tell: scoring.perplexity(decoder, tokens, windows, tell)
        )

    def compare(
        self, golden: Path | str, on_progress: Progress | None = None
    ) -> scoring.Comparison:
        """How far this model's predictions are from the reference's stored in `golden`.

        Raises ModelIOError, CorruptModel, OutOfBudget.
        """
        reference = read_golden(Path(golden), self.config.vocab_size)
        decoder = self._service.model.decoder
        return self._scored(
            reference.windows,
            on_progress,
            lambda tell: scoring.compare_golden(decoder, reference, tell),
        )

    def close(self) -> None:
        """Stop the replies in progress, free the memory. The model cannot be used any more."""
        self._service.close()

    def _context(self, n_ctx: int) -> int:
        return LoadOptions(n_ctx=n_ctx).context(self.config)

    def _scored(
        self,
        windows: Sequence[Window],
        on_progress: Progress | None,
        work: Callable[[Progress], Result],
    ) -> Result:
        """Do `work` on the engine's thread with room for its windows; what else is urgent, too."""
        service = self._service
        longest = max((end - start for start, end in windows), default=1)
        needed = kv_bytes(self.config, longest, self.kv_dtype)
        needed += scoring.scratch_bytes(self.config.vocab_size)

        def tell(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress(done, total)
            service.between_layers()

        def with_room() -> Result:
            with service.memory.lent(needed):
                return work(tell)

        return service.call(with_room)

    def _adopt(self, state: SessionState, params: SamplingParams) -> Session:
        self._service.adopt(state)
        return Session(self._service, state, params)
