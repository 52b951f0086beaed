"""Speculative decoding changes nothing but the time: the same replies, caches and distributions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_decoder
import numpy as np
import pytest
from fake_decoder import FakeDecoder
from hypothesis import given, settings
from hypothesis import strategies as st

from flashllm.errors import Cancelled, ContextFull
from flashllm.generate import session_file
from flashllm.generate.drafting import DraftModel
from flashllm.generate.events import Done, Event, Token
from flashllm.generate.sampling import PENALTY_WINDOW, SamplingParams
from flashllm.generate.session import Call, ChatModel, SessionState

CONTEXT = 96


class Guesser(FakeDecoder):
    """Is right about a share of all tokens, by its hash of those before."""

    def __init__(self, right: float, **options: Any) -> None:
        super().__init__(**options)
        self.right = right

    def logits(self, history: list[int]) -> np.ndarray:
        logits = super().logits(history)
        if hash(tuple(history)) % 100 >= 100 * self.right:
            logits[3:] = np.roll(logits[3:], 1)
        return logits


class Counted(FakeDecoder):
    """Counts its steps."""

    steps = 0

    def step(self, *args: Any, **options: Any) -> np.ndarray:
        self.steps += 1
        return super().step(*args, **options)


def models(right: float, guesses: int = 4, **options: Any) -> tuple[ChatModel, ChatModel]:
    """The same model without and with a draft."""
    alone, helped = fake_decoder.chat_model(Counted()), fake_decoder.chat_model(Counted())
    draft = DraftModel(Guesser(right, **options), guesses)
    words = (helped.tokenizer, helped.prompts, helped.identity)
    return alone, ChatModel(helped.decoder, *words, draft)


def endless(*models: ChatModel) -> None:
    """Have none of these end a reply, nor expect it."""
    for model in models:
        for decoder in (model.decoder, *([model.draft.decoder] if model.draft else [])):
            decoder.ends = 0.0  # type: ignore[attr-defined]


def reply(
    state: SessionState, text: str, params: SamplingParams, check: Any = lambda: None
) -> tuple[list[Event], Done]:
    events = list(state.ask(text, Call(params, check, lambda event: None, time.perf_counter())))
    done = events[-1]
    assert isinstance(done, Done)
    return [event for event in events if isinstance(event, Token)], done


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.sampled_from([0, 3, 40]),
    top_p=st.sampled_from([0.5, 1.0]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    seed=st.integers(0, 1 << 20),
    max_tokens=st.none() | st.integers(1, 30),
    stop=st.sampled_from([(), ("the",), ("a", "zz")]),
)


@given(
    st.lists(st.tuples(st.sampled_from(["hello", "and the other room?"]), samplings), max_size=3),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.integers(1, 7),
    st.integers(40, CONTEXT),
    st.sampled_from([60, 512]),
)
@settings(max_examples=40)
def test_conversations_are_the_same_with_a_draft(
    turns: list[tuple[str, SamplingParams]], right: float, guesses: int, n_ctx: int, context: int
) -> None:
    """Whatever the sampling, the stop texts, the room, and how much the draft knows."""
    alone, helped = (SessionState(m, n_ctx) for m in models(right, guesses, context=context))
    for text, params in turns:
        try:
            expected, end = reply(alone, text, params)
        except ContextFull:
            with pytest.raises(ContextFull):
                reply(helped, text, params)
            continue
        pieces, done = reply(helped, text, params)
        assert pieces == expected
        assert done.reason == end.reason
        assert done.stats.context_tokens == end.stats.context_tokens
        assert helped.tokens == alone.tokens
        assert helped.sequence.tokens == alone.sequence.tokens  # type: ignore[attr-defined]
        assert done.stats.accepted_tokens <= done.stats.guessed_tokens


@pytest.mark.parametrize(("right", "steps"), [(1.0, 12), (0.0, 56)])
def test_right_guesses_save_steps_and_wrong_ones_cost_none(right: float, steps: int) -> None:
    alone, helped = models(right)
    params = SamplingParams(temperature=0, max_tokens=56)
    endless(alone, helped)
    expected = reply(SessionState(alone, 200), "hello", params)[0]
    pieces, done = reply(SessionState(helped, 200), "hello", params)
    assert pieces == expected
    assert helped.decoder.steps == steps <= alone.decoder.steps == 56  # type: ignore[attr-defined]
    stats = done.stats
    if right:
        assert stats.accepted_tokens == stats.guessed_tokens == 56 - steps
    else:
        assert stats.accepted_tokens == 0
        assert stats.guessed_tokens > 100
    assert stats.draft_s > 0


def test_guesses_know_of_the_repeat_penalty() -> None:
    model = models(1.0)[1]
    endless(model)
    params = SamplingParams(temperature=0, repeat_penalty=5.0, max_tokens=56)
    stats = reply(SessionState(model, 500), "the other room " * 60, params)[1].stats
    assert stats.accepted_tokens == stats.guessed_tokens == 44
    assert stats.prompt_tokens + 56 > PENALTY_WINDOW


def test_what_stays_of_a_sparse_step_follows_the_share_that_is_accepted() -> None:
    for right, kept in ((1.0, 5), (0.0, 1)):
        model = models(right)[1]
        endless(model)
        reply(SessionState(model, 200), "hello", SamplingParams(temperature=0, max_tokens=56))
        assert model.decoder.kept_rows == kept  # type: ignore[attr-defined]


def cancelled(after: int) -> Iterator[None]:
    """Raises Cancelled at the call after so many."""
    for _ in range(after):
        yield
    raise Cancelled("enough")


@pytest.mark.parametrize("after", [0, 2, 8, 9, 10, 11, 12, 13, 30, 47])
def test_cancelled_in_any_layer_of_either_model(after: int) -> None:
    """What came stays, and the conversation goes on as one that had come so far."""
    params = SamplingParams(temperature=0, max_tokens=30)
    for right in (1.0, 0.5, 0.0):
        model = models(right)[1]
        endless(model)
        state = SessionState(model, CONTEXT)
        ticks = cancelled(after)
        pieces, done = reply(state, "hello", params, lambda ticks=ticks: next(ticks))
        assert done.reason == "cancelled"
        assert len(state.tokens) == state.sequence.length
        plain = models(0.0)[0]
        endless(plain)
        fresh = SessionState(plain, CONTEXT, state.messages)
        assert state.messages[-1].content == "".join(piece.text for piece in pieces)
        assert reply(state, "next", params)[0] == reply(fresh, "next", params)[0]


def test_a_conversation_that_a_stop_text_cut_short_is_saved(tmp_path: Path) -> None:
    model = models(1.0, guesses=7)[1]
    params = SamplingParams(temperature=0)
    text = "".join(piece.text for piece in reply(SessionState(model, CONTEXT), "hello", params)[0])
    for at in range(0, len(text) // 2, 2):
        state = SessionState(model, CONTEXT)
        stop = SamplingParams(temperature=0, stop=(text[at],))
        assert reply(state, "hello", stop)[1].reason == "stop"
        session_file.save(state, tmp_path / "talk")
        loaded = session_file.load(tmp_path / "talk", model)
        assert loaded.tokens == state.tokens
        assert reply(loaded, "next", params)[0] == reply(state, "next", params)[0]


def test_an_undone_turn_is_forgotten_by_the_draft_too() -> None:
    alone, helped = (SessionState(model, CONTEXT) for model in models(1.0))
    params = SamplingParams(temperature=0, max_tokens=8)
    for state in (alone, helped):
        reply(state, "hello", params)
        state.undo()
    expected = reply(alone, "what is the time", params)[0]
    pieces, done = reply(helped, "what is the time", params)
    assert pieces == expected
    assert done.stats.accepted_tokens == done.stats.guessed_tokens > 0
