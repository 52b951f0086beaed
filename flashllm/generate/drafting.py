"""Speculative decoding: a small model guesses what comes next, the large one checks in one step.

As Leviathan et al. (arXiv 2211.17192) accept and reject guesses, with guesses that are the draft's
likeliest tokens: what the draft draws from is then a single token, and to accept it as often as the
model itself would draw it, else to draw one of the others, is to draw as ever and compare. So the
draft changes only the time that a reply takes: not its distribution, nor what a seed gives.

Of a model that runs sparse the neurons that stay are those of the checked tokens up to the one that
ends the share usually accepted, as in "LLM in a flash" (arXiv 2312.11514), on speculation.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Sequence
from itertools import takewhile

from flashllm.generate.loop import Decoder, KVSequence, OnLayer
from flashllm.generate.sampling import Sampler


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """A small model with the large one's tokens. guesses: how many to make for a step, at most."""

    decoder: Decoder
    guesses: int


class DraftContext:
    """The draft's side of a conversation: its keys and values, and how often it was right."""

    def __init__(self, model: DraftModel, target: Decoder, n_ctx: int) -> None:
        """target: the model that it guesses for. n_ctx: tokens that the conversation may hold."""
        self.model = model
        self.target = target
        context = min(n_ctx, model.decoder.config.context_length)
        self._sequence: KVSequence = model.decoder.new_sequence(context)
        self._held: list[int] = []
        self._guessed = self._accepted = 0

    @property
    def accepted_share(self) -> float:
        """The share of all guesses that were right, 1 before there were any."""
        return self._accepted / self._guessed if self._guessed else 1.0

    def judge(self, guessed: int, accepted: int) -> None:
        """Count guesses, and those that were right."""
        self._guessed += guessed
        self._accepted += accepted

    def guess(
        self,
        tokens: list[int],
        most: int,
        sampler: Sampler,
        ends: Collection[int],
        on_layer: OnLayer,
    ) -> list[int]:
        """Up to `most` tokens that may come after `tokens`; none that ends a reply.

        sampler: what chooses the reply's tokens; it is left as it is. Fewer where the draft's
        context ends. Raises what on_layer and reading weights raise.
        """
        decoder, vocabulary = self.model.decoder, self.target.config.vocab_size
        self._keep_what_begins(tokens)
        new = tokens[len(self._held) :]
        most = min(most, self.model.guesses, self._sequence.n_ctx - len(tokens) + 1)
        if max(new) >= decoder.config.vocab_size:  # ids that pad one vocabulary and not the other
            return []
        guesses: list[int] = []
        while len(guesses) < most:
            logits = decoder.step(self._sequence, new, logits="last", on_layer=on_layer)
            self._held += new
            token = sampler.likeliest(logits[-1, :vocabulary], guesses)
            if token in ends:
                break
            guesses.append(token)
            new = [token]
        return guesses

    def close(self) -> None:
        """Free the keys and values."""
        self._sequence.close()

    def _keep_what_begins(self, tokens: list[int]) -> None:
        """Forget what is no beginning of `tokens`, whose last one is left to read."""
        held = self._held
        if held != tokens[:-1][: len(held)]:
            pairs = takewhile(lambda pair: pair[0] == pair[1], zip(held, tokens[:-1], strict=False))
            del held[sum(1 for _ in pairs) :]
        self._sequence.truncate(len(held))


class ReplyDraft:
    """Guesses for one reply. guessed, accepted: so many so far; seconds: spent on them."""

    def __init__(
        self,
        context: DraftContext,
        tokens: list[int],
        sampler: Sampler,
        ends: Collection[int],
        on_layer: OnLayer,
    ) -> None:
        """tokens: of the conversation up to now, which grow. sampler: what chooses them. ends:
        those that end a reply.
        """
        self.guessed = self.accepted = 0
        self.seconds = 0.0
        self._context = context
        self._tokens = tokens
        self._sampler = sampler
        self._ends = ends
        self._on_layer = on_layer

    def guess(self, most: int) -> Sequence[int]:
        """Up to `most` tokens that may come next, which the next step is going to check."""
        start = time.perf_counter()
        try:
            made = self._context.guess(
                self._tokens, most, self._sampler, self._ends, self._on_layer
            )
        finally:
            self.seconds += time.perf_counter() - start
        probable = round(self._context.accepted_share * (len(made) + 1))
        self._context.target.keep_rows(max(1, probable))
        return made

    def judge(self, guessed: int, accepted: int) -> None:
        """Say how many of the guesses were right."""
        self.guessed += guessed
        self.accepted += accepted
        self._context.judge(guessed, accepted)
