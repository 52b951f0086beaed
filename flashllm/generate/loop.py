"""The generation loop as nested generators: token ids, then events; each says why it ended."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from flashllm.cache.kv import SavedArray
from flashllm.cache.units import Traffic
from flashllm.errors import Cancelled
from flashllm.generate.events import Reason, Token
from flashllm.generate.sampling import Sampler
from flashllm.generate.tokenizer import StreamDecoder
from flashllm.layers.sparse_ffn import SparseCounts
from flashllm.model.config import ModelConfig
from flashllm.model.memory import KVDtype

OnLayer = Callable[[int, int], None]
"""Called after each layer with the work done and the work in all; may raise Cancelled."""


class KVSequence(Protocol):
    """What generation needs of a sequence: the keys and values of one conversation."""

    @property
    def length(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def truncate(self, length: int, /) -> None: ...
    def export(self) -> dict[str, npt.NDArray[Any]]: ...
    def restore(self, state: dict[str, SavedArray], /) -> None: ...
    def close(self) -> None: ...


class Stepper(Protocol):
    """What makes steps: a model, or who counts what its steps cost."""

    def step(
        self,
        sequence: Any,
        tokens: Any,
        /,
        *,
        logits: Literal["last", "all", "none"],
        on_layer: OnLayer | None = None,
    ) -> npt.NDArray[np.float32]: ...


class Decoder(Stepper, Protocol):
    """What generation needs of a model: flashllm.model.decoder.Decoder, or a test's stand-in."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def resident_bytes(self) -> int: ...
    @property
    def streamed_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    @property
    def budget(self) -> int | None: ...
    @property
    def traffic(self) -> Traffic: ...
    @property
    def sparse_counts(self) -> SparseCounts | None: ...
    @property
    def fallback(self) -> str | None: ...
    @property
    def kv_dtype(self) -> KVDtype: ...
    def new_sequence(self, n_ctx: int, /) -> KVSequence: ...
    def fit(
        self, budget: int | None, *, kv: int, taken: int, on_progress: Callable[[int, int], None]
    ) -> None: ...
    def least_budget(self, *, kv: int, taken: int) -> int: ...
    def keep_rows(self, rows: int, /) -> None: ...
    def close(self) -> None: ...


class Draft(Protocol):
    """Guesses what comes next, never the end, and is told how many of its guesses were right."""

    def guess(self, most: int, /) -> Sequence[int]: ...
    def judge(self, guessed: int, accepted: int, /) -> None: ...


def generate_ids(
    decoder: Stepper,
    sequence: KVSequence,
    prompt: Sequence[int],
    sampler: Sampler,
    *,
    ends: Collection[int],
    max_tokens: int | None,
    on_prefill: OnLayer,
    on_layer: OnLayer,
    draft: Draft | None = None,
) -> Generator[int, None, Reason]:
    """Append `prompt` (at least one token) to `sequence`, then yield the tokens of the reply.

    A token in `ends` ends the reply and is not yielded. The last token yielded is not in the
    sequence yet when the generator ends. on_prefill and on_layer watch the steps of prompt and
    reply; either may raise Cancelled, which leaves the sequence valid up to its length. draft:
    guesses tokens that a step checks with the one before; it changes neither tokens nor sequence.
    """
    guesses: Sequence[int] = ()
    known, made = sequence.length + len(prompt), 0
    try:
        logits = decoder.step(sequence, prompt, logits="last", on_layer=on_prefill)
        while True:
            tokens = _sampled(logits, guesses, sampler)
            sequence.truncate(known + len(tokens) - 1)
            if draft is not None:
                draft.judge(len(guesses), len(tokens) - 1)
            for token in tokens:
                if token in ends:
                    return "stop"
                yield token
                made += 1
                if made == max_tokens:
                    return "length"
                known += 1
            if sequence.length >= sequence.n_ctx:
                return "context"
            if draft is not None:
                left = sequence.n_ctx if max_tokens is None else max_tokens - made - 1
                guesses = draft.guess(min(left, sequence.n_ctx - known))
            logits = decoder.step(sequence, [token, *guesses], logits="all", on_layer=on_layer)
    except Cancelled:
        return "cancelled"
    finally:
        sequence.truncate(min(sequence.length, known))


def _sampled(
    logits: npt.NDArray[np.float32], guesses: Sequence[int], sampler: Sampler
) -> list[int]:
    """The tokens that logits [guesses + 1, vocabulary] give: right guesses, and one more."""
    tokens: list[int] = []
    for row, guess in zip(logits, [*guesses, None], strict=True):
        tokens.append(sampler.sample(row))
        if tokens[-1] != guess:
            break
    return tokens


def generate_text(
    ids: Generator[int, None, Reason],
    decoder: StreamDecoder,
    stops: Sequence[str],
    on_token: Callable[[int], None],
) -> Generator[Token, None, Reason]:
    """The text of `ids` in pieces; on_token is told of every id before its text is.

    No piece is empty, splits a character, or holds any of a stop text, which ends the reply.
    """
    reason: Reason | None = None
    gate = StopGate(stops)
    token = 0
    while reason is None:
        try:
            token = next(ids)
            on_token(token)
            text = gate.push(decoder.push(token))
        except StopIteration as end:
            reason = end.value
            text = gate.push(decoder.finish()) + gate.finish()
        if gate.stopped:
            ids.close()
            reason = "stop"
        if text:
            yield Token(text, token)
    return reason


class StopGate:
    """Lets text through up to the first stop text to be complete, which may straddle pieces.

    stopped: a stop text came; nothing passes any more. What passes in all does not depend on how
    the text is cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that is now certain not to belong to a stop text."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        self.stopped = bool(found)
        passed = min(found)[1] if found else len(text) - self._undecided(text)
        self._held = "" if found else text[passed:]
        return text[:passed]

    def finish(self) -> str:
        """The text held back, when no more is to come."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` with which a stop text begins."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
