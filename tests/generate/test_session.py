"""Tests of a conversation: its prefix is reused, its context is bounded, errors withdraw a turn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fake_decoder
import pytest
from fake_decoder import FakeDecoder

from flashllm.cache.units import Traffic
from flashllm.errors import Cancelled, ContextFull, CorruptModel, EngineError, InvalidInput
from flashllm.generate.events import Done, Prefill, Token
from flashllm.generate.sampling import SamplingParams
from flashllm.generate.session import Call, SessionState
from flashllm.generate.template import Message

SYSTEM = Message("system", "s")


@dataclasses.dataclass
class Heard:
    """Everything one reply reported."""

    text: str
    done: Done
    prefill: list[Prefill]


def call(check: Callable[[], None] = lambda: None, **options: Any) -> tuple[Call, list[Prefill]]:
    params = SamplingParams(**{"seed": 1, "max_tokens": 12, **options})
    shown: list[Prefill] = []
    return Call(params, check, shown.append, time.perf_counter()), shown


def hear(state: SessionState, text: str | None, **options: Any) -> Heard:
    """Ask (or retry, for None) and listen to the end."""
    request, shown = call(**options)
    events = list(state.retry(request) if text is None else state.ask(text, request))
    assert isinstance(events[-1], Done)
    pieces = [event.text for event in events if isinstance(event, Token)]
    assert len(pieces) == len(events) - 1
    return Heard("".join(pieces), events[-1], shown)


def new_state(
    decoder: FakeDecoder | None = None, n_ctx: int = 512, **kw: Any
) -> tuple[SessionState, FakeDecoder]:
    decoder = decoder or FakeDecoder()
    return SessionState(fake_decoder.chat_model(decoder, **kw), n_ctx), decoder


def fresh_reply(messages: tuple[Message, ...], text: str, **options: Any) -> str:
    """What a session with nothing in its cache replies after these messages."""
    state, _ = new_state()
    state.messages = messages
    return hear(state, text, **options).text


def test_a_turn_adds_question_and_reply() -> None:
    state, _ = new_state()
    heard = hear(state, "hello")
    assert state.messages == (Message("user", "hello"), Message("assistant", heard.text))
    assert heard.text


def test_later_turns_read_only_what_is_new_and_reply_as_a_fresh_session_would() -> None:
    state, _ = new_state()
    for question in ("one", "two", "three"):
        before = state.messages
        heard = hear(state, question)
        assert heard.text == fresh_reply(before, question)
        stats = heard.done.stats
        assert stats.cached_tokens >= (1 if before else 0)
        assert stats.cached_tokens < stats.prompt_tokens
    assert stats.cached_tokens > 20


def test_progress_reaches_the_end_of_what_is_new() -> None:
    state, _ = new_state()
    heard = hear(state, "hello " * 10)
    total = heard.done.stats.prompt_tokens * fake_decoder.LAYERS
    assert [p.total for p in heard.prefill] == [total] * len(heard.prefill)
    assert heard.prefill[-1].done == total
    again = hear(state, None)
    assert again.prefill[-1].total == fake_decoder.LAYERS, "a retry reads one token again"


def test_a_seed_repeats_a_reply_and_another_changes_it() -> None:
    state, _ = new_state()
    first = hear(state, "hello", seed=5)
    assert hear(state, None, seed=5).text == first.text
    assert hear(state, None, seed=6).text != first.text
    assert len(state.messages) == 2
    assert first.done.stats.seed == 5


def test_undo_reset_and_system() -> None:
    state, _ = new_state()
    state.set_system("s")
    hear(state, "one")
    hear(state, "two")
    assert state.undo() == "two"
    assert [m.role for m in state.messages] == ["system", "user", "assistant"]
    state.set_system("t")
    assert state.messages[0] == Message("system", "t")
    state.reset()
    assert state.messages == (Message("system", "t"),)
    with pytest.raises(InvalidInput, match="withdraw"):
        state.undo()
    with pytest.raises(InvalidInput, match="again"):
        state.retry(call()[0])
    state.set_system(None)
    assert state.messages == ()


def test_a_prompt_longer_than_the_context_is_refused_and_changes_nothing() -> None:
    state, _ = new_state(n_ctx=40)
    hear(state, "a", max_tokens=3)
    before, tokens = state.messages, state.tokens
    with pytest.raises(ContextFull, match=r"tokens long but the context holds 40.*up to 512"):
        hear(state, "b" * 50)
    assert (state.messages, state.tokens) == (before, tokens)
    assert hear(state, "c", max_tokens=2).done.reason == "length"


def test_a_reply_that_fills_the_context_ends_there() -> None:
    state, _ = new_state(FakeDecoder(ends=0.0), n_ctx=40)
    heard = hear(state, "a", max_tokens=None)
    assert heard.done.reason == "context"
    stats = heard.done.stats
    assert stats.context_tokens == stats.n_ctx == 40
    assert stats.prompt_tokens + stats.generated_tokens == 41
    assert state.messages[-1].content == heard.text


def test_a_prompt_that_just_fits_gets_one_token() -> None:
    state, _ = new_state(FakeDecoder(ends=0.0))
    length = hear(state, "a", max_tokens=1).done.stats.prompt_tokens
    snug, _ = new_state(FakeDecoder(ends=0.0), n_ctx=length)
    heard = hear(snug, "a", max_tokens=None)
    assert (heard.done.reason, heard.done.stats.generated_tokens) == ("context", 1)


@pytest.mark.parametrize("at", [0, 1, 2, 5, 8, 9, 12, 15, 17, 18, 21, 30, 36])
def test_after_a_cancel_anywhere_the_next_turn_equals_a_fresh_run(at: int) -> None:
    state, decoder = new_state(FakeDecoder(ends=0.0))
    whole = hear(new_state(FakeDecoder(ends=0.0))[0], "hello there").text
    start = decoder.layers_run

    def check() -> None:
        if decoder.layers_run - start > at:
            raise Cancelled("enough")

    heard = hear(state, "hello there", check=check)
    assert heard.done.reason == "cancelled"
    assert decoder.layers_run - start == at + 1, "stops within one layer"
    assert whole.startswith(heard.text)
    assert state.messages == (Message("user", "hello there"), Message("assistant", heard.text))
    before = state.messages
    assert hear(state, "next").text == fresh_reply_of(FakeDecoder(ends=0.0), before, "next")


def fresh_reply_of(decoder: FakeDecoder, messages: tuple[Message, ...], text: str) -> str:
    state, _ = new_state(decoder)
    state.messages = messages
    return hear(state, text).text


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_withdraw_the_turn_and_empty_the_cache(bad: float) -> None:
    state, decoder = new_state()
    hear(state, "one")
    before = state.messages
    decoder.poison = bad
    with pytest.raises(EngineError, match="verify"):
        hear(state, "two")
    assert (state.messages, state.tokens) == (before, [])
    decoder.poison = None
    assert hear(state, "two").text == fresh_reply(before, "two")


def test_a_template_that_refuses_withdraws_the_turn() -> None:
    state, _ = new_state(template="{{ raise_exception('not like this') }}")
    try:
        with pytest.raises(InvalidInput, match="not like this"):
            hear(state, "x")
        assert state.messages == ()
    finally:
        state.model.close()


def test_a_broken_template_is_the_models_fault() -> None:
    state, _ = new_state(template="{{ 1 / 0 }}")
    try:
        with pytest.raises(CorruptModel, match="ZeroDivisionError"):
            hear(state, "x")
    finally:
        state.model.close()


def test_without_a_template_there_is_only_raw_text() -> None:
    state, _ = new_state(template=None)
    with pytest.raises(InvalidInput, match="--raw"):
        hear(state, "x")
    events = list(state.complete("x <|im_start|>", call()[0]))
    assert isinstance(events[-1], Done)
    assert state.tokens[:3] == fake_decoder.tokenizer().encode("x <|im_start|>", special=True)
    with pytest.raises(InvalidInput, match="empty"):
        state.complete("", call()[0])


def test_a_stop_text_ends_the_reply_and_is_left_out_of_the_conversation() -> None:
    state, _ = new_state(FakeDecoder(ends=0.0))
    whole = hear(state, "hello").text
    stop = whole[4:6]
    heard = hear(state, None, stop=stop)
    assert heard.done.reason == "stop"
    assert heard.text == whole[: whole.index(stop)]
    assert state.messages[-1].content == heard.text


def test_stats_add_up() -> None:
    state, _ = new_state(FakeDecoder(ends=0.0))
    stats = hear(state, "hello", max_tokens=5).done.stats
    assert stats.generated_tokens == 5
    assert stats.context_tokens == stats.prompt_tokens + 4
    assert stats.ttft_s is not None
    assert stats.ttft_s > 0
    assert stats.prefill_tok_s > 0
    assert stats.decode_tok_s > 0
    assert stats.rss_bytes > 1_000_000
    none = hear(new_state(FakeDecoder(ends=1.0))[0], "hello").done.stats
    assert (none.ttft_s, none.generated_tokens, none.decode_tok_s) == (None, 0, 0.0)


def test_stats_tell_what_the_weights_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        "flashllm.generate.meter.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )

    def layer(count: int) -> None:
        clock.now += 0.5
        t = decoder.traffic
        decoder.traffic = Traffic(t.used_bytes + 100, t.read_bytes + 40, t.wait_s + 0.125)

    decoder = FakeDecoder(ends=0.0)
    decoder.before_layer, decoder.budget = layer, 5_000_000
    decoder.traffic = Traffic(7_000, 7_000, 70.0)  # of earlier replies
    state, _ = new_state(decoder)
    stats = hear(state, "hello", max_tokens=5).done.stats
    layers = decoder.layers_run
    assert layers > 4 * fake_decoder.LAYERS
    assert stats.weights_read_bytes == 40 * layers
    assert stats.weights_read_per_token == 40 * fake_decoder.LAYERS
    assert stats.hit_rate == pytest.approx(0.6)
    assert stats.wait_s == pytest.approx(0.125 * layers)
    assert stats.compute_s == pytest.approx(0.375 * layers)
    assert stats.decode_tok_s == pytest.approx(1 / (0.5 * fake_decoder.LAYERS))
    assert stats.mem_budget == 5_000_000
    assert 0 < stats.private_bytes <= stats.rss_bytes + (64 << 20)


def test_memory_is_taken_with_the_first_reply_and_given_back() -> None:
    state, decoder = new_state()
    assert decoder.sequences == []
    hear(state, "x")
    state.close()
    assert decoder.sequences[0].closed
    assert state.tokens == []
