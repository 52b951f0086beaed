"""A conversation: its messages, its KV cache, and the rule for what happens when that is full."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Sequence
from itertools import takewhile

from flashllm.errors import ContextFull, InvalidInput
from flashllm.generate.drafting import DraftContext, DraftModel, ReplyDraft
from flashllm.generate.events import Done, Event, Prefill, Token
from flashllm.generate.loop import Decoder, KVSequence, OnLayer, generate_ids, generate_text
from flashllm.generate.meter import Meter
from flashllm.generate.prompt import PromptEncoder
from flashllm.generate.sampling import Sampler, SamplingParams
from flashllm.generate.template import Message
from flashllm.generate.tokenizer import StreamDecoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class ChatModel:
    """What sessions share: a model with its words.

    prompts: None for a model without a chat template. identity: names the exact weights and
    arithmetic, so that a saved KV cache is restored only where it fits. draft: guesses tokens, for
    speculative decoding.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    prompts: PromptEncoder | None
    identity: str
    draft: DraftModel | None = None

    def close(self) -> None:
        """Free the weights, and end the chat template's process if it has one."""
        self.decoder.close()
        if self.draft is not None:
            self.draft.decoder.close()
        if self.prompts is not None:
            self.prompts.close()


@dataclasses.dataclass(frozen=True)
class Call:
    """A request for one reply.

    check raises Cancelled once the caller has cancelled. show takes Prefill events, which happen
    inside a step and so cannot be yielded. started: time.perf_counter() when it was made.
    """

    params: SamplingParams
    check: Callable[[], None]
    show: Callable[[Prefill], None]
    started: float


class SessionState:
    """A conversation with a model, as the engine thread keeps it. Memory for n_ctx tokens of keys
    and values is taken when the first reply needs it.

    The context rule: a prompt longer than n_ctx tokens is refused with ContextFull, and the
    conversation stays as it was; a reply that fills the context ends there, reason "context".

    A cancelled reply stays in the conversation as far as it came, empty if it had not begun. After
    an error the turn is withdrawn.
    """

    def __init__(self, model: ChatModel, n_ctx: int, messages: Sequence[Message] = ()) -> None:
        self.model = model
        self.n_ctx = n_ctx
        self.messages = tuple(messages)
        self._sequence: KVSequence | None = None
        self._draft: DraftContext | None = None
        self._submitted: list[int] = []

    @property
    def sequence(self) -> KVSequence:
        """The keys and values of `tokens`."""
        if self._sequence is None:
            self._sequence = self.model.decoder.new_sequence(self.n_ctx)
        return self._sequence

    @property
    def tokens(self) -> list[int]:
        """The tokens whose keys and values are in the cache."""
        return self._submitted[: self._sequence.length] if self._sequence else []

    def adopt(self, tokens: Sequence[int]) -> None:
        """Say which tokens a restored sequence holds."""
        self._submitted = list(tokens)

    def close(self) -> None:
        """Free the KV cache."""
        if self._sequence is not None:
            self._sequence.close()
            self._sequence = None
        if self._draft is not None:
            self._draft.close()
            self._draft = None

    def ask(self, text: str, call: Call) -> Generator[Event, None, None]:
        """Reply to the user's next message: Token events, then Done.

        Raises ContextFull; EngineError; InvalidInput if the template refuses the messages or the
        model has none; CorruptModel if the template is broken.
        """
        return self._turn((*self.messages, Message("user", text)), call)

    def retry(self, call: Call) -> Generator[Event, None, None]:
        """Reply anew to the last user message. Raises as ask; InvalidInput if there is none."""
        asked = self.messages
        while asked and asked[-1].role == "assistant":
            asked = asked[:-1]
        if not asked or asked[-1].role != "user":
            raise InvalidInput("there is no message to reply to again")
        return self._turn(asked, call)

    def complete(self, text: str, call: Call) -> Generator[Event, None, None]:
        """Continue `text` as it is, control tokens in it included; messages play no part.

        Raises ContextFull, EngineError; InvalidInput if the text is empty.
        """
        prompt = self.model.tokenizer.encode(text, special=True, add_bos=True)
        if not prompt:
            raise InvalidInput("the prompt is empty; there is nothing to continue")
        return self._generate(prompt, call, self.model.tokenizer.stream(after=prompt))

    def undo(self) -> str:
        """Withdraw the last user message, return it, and drop what followed.

        Raises InvalidInput if there is none.
        """
        users = [i for i, message in enumerate(self.messages) if message.role == "user"]
        if not users:
            raise InvalidInput("there is no message to withdraw")
        withdrawn = self.messages[users[-1]].content
        self.messages = self.messages[: users[-1]]
        return withdrawn

    def reset(self) -> None:
        """Withdraw everything but the system prompt."""
        self.messages = tuple(takewhile(lambda message: message.role == "system", self.messages))

    def set_system(self, text: str | None) -> None:
        """Replace the system prompt; None removes it."""
        rest = tuple(message for message in self.messages if message.role != "system")
        self.messages = rest if text is None else (Message("system", text), *rest)

    def _turn(self, asked: tuple[Message, ...], call: Call) -> Generator[Event, None, None]:
        if self.model.prompts is None:
            raise InvalidInput(
                "this model has no chat template, so it cannot chat; "
                "let it continue raw text instead (`flashllm run --raw`)"
            )
        pieces: list[str] = []
        prompt = self.model.prompts.encode(asked)
        for event in self._generate(prompt, call, self.model.tokenizer.stream()):
            if isinstance(event, Token):
                pieces.append(event.text)
            elif isinstance(event, Done):
                self.messages = (*asked, Message("assistant", "".join(pieces)))
            yield event

    def _generate(
        self, prompt: list[int], call: Call, words: StreamDecoder
    ) -> Generator[Event, None, None]:
        cached = self._rewind(prompt)
        meter = Meter(self.model.decoder, call.started, len(prompt), cached)
        sampler = Sampler(call.params, prompt)

        def on_prefill(done: int, total: int) -> None:
            call.check()
            call.show(Prefill(done, total))

        def on_token(token: int) -> None:
            meter.count(token)
            self._submitted.append(token)

        draft = self._drafted(sampler, lambda done, total: call.check())
        ids = generate_ids(
            meter,
            self.sequence,
            prompt[cached:],
            sampler,
            ends=self.model.tokenizer.eos_ids,
            max_tokens=call.params.max_tokens,
            on_prefill=on_prefill,
            on_layer=lambda done, total: call.check(),
            draft=draft,
        )
        try:
            reason = yield from generate_text(ids, words, call.params.stop, on_token)
        except Exception:
            self.sequence.truncate(0)  # what failed may have left nonsense in the cache
            raise
        length = self.sequence.length
        stats = meter.stats(seed=sampler.seed, context_tokens=length, n_ctx=self.n_ctx)
        if draft is not None:
            stats = dataclasses.replace(
                stats,
                guessed_tokens=draft.guessed,
                accepted_tokens=draft.accepted,
                draft_s=draft.seconds,
            )
        yield Done(stats, reason)

    def _drafted(self, sampler: Sampler, on_layer: OnLayer) -> ReplyDraft | None:
        """Guesses for a reply to what is submitted, if the model has a draft."""
        model = self.model
        if model.draft is None:
            return None
        if self._draft is None:
            self._draft = DraftContext(model.draft, model.decoder, self.n_ctx)
        ends = model.tokenizer.eos_ids
        return ReplyDraft(self._draft, self._submitted, sampler, ends, on_layer)

    def _rewind(self, prompt: list[int]) -> int:
        """Keep of the cache what `prompt` begins with, and say how many tokens that is.

        At least the prompt's last token is left to read, because its logits are needed.
        """
        if len(prompt) > self.n_ctx:
            raise ContextFull(
                f"the conversation is {len(prompt)} tokens long but the context holds "
                f"{self.n_ctx}; shorten it, start anew, or choose a larger context "
                f"(--ctx-size; this model was made for up to "
                f"{self.model.decoder.config.context_length})"
            )
        pairs = zip(self.tokens, prompt[:-1], strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.sequence.truncate(kept)
        self._submitted = list(prompt)
        return kept
