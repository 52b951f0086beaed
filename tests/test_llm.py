"""Tests of LLM and its sessions: what replies tell, settings, errors, budgets, saving."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import fake_decoder
import pytest
from fake_decoder import FakeDecoder

from flashllm.errors import ContextFull, EngineError, InvalidInput, OutOfBudget
from flashllm.generate.events import Done, Prefill, Token
from flashllm.generate.template import Message
from flashllm.llm import LLM, Session
from flashllm.model.memory import FIXED_BYTES, kv_bytes


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(ends=0.0)


@pytest.fixture
def llm(decoder: FakeDecoder) -> Iterator[LLM]:
    with LLM(fake_decoder.chat_model(decoder), name="fake") as opened:
        yield opened


def alone(text: str, **options: object) -> str:
    """What a model of its own replies to `text`."""
    with LLM(fake_decoder.chat_model(FakeDecoder(ends=0.0))) as llm:
        return llm.session().ask(text, **options)  # type: ignore[arg-type]


def test_a_reply_tells_its_progress_its_text_and_its_end(llm: LLM) -> None:
    chat = llm.session(system="s")
    reply = chat.stream("hello", max_tokens=20, seed=1)
    events = list(reply)
    assert isinstance(events[0], Prefill)
    assert isinstance(events[-1], Done)
    assert events[-1].stats == reply.stats
    assert reply.reason == "length"
    tokens = [event for event in events if isinstance(event, Token)]
    assert "".join(token.text for token in tokens) == reply.text == reply.result()
    assert chat.messages == (
        Message("system", "s"), Message("user", "hello"), Message("assistant", reply.text),
    )  # fmt: skip
    assert list(reply) == []


def test_async_iteration_gives_the_same_events(llm: LLM) -> None:
    async def collect() -> str:
        reply = llm.session().stream("hello", max_tokens=20, seed=1)
        return "".join([event.text async for event in reply if isinstance(event, Token)])

    async def several() -> list[str]:
        return await asyncio.gather(*(collect() for _ in range(4)))

    assert set(asyncio.run(several())) == {alone("hello", max_tokens=20, seed=1)}


def test_errors_reach_whoever_reads_and_the_session_lives_on(
    llm: LLM, decoder: FakeDecoder
) -> None:
    chat = llm.session(n_ctx=64)
    reply = chat.stream("x" * 100)
    with pytest.raises(ContextFull):
        list(reply)
    with pytest.raises(ContextFull):
        reply.result()
    assert chat.messages == ()
    decoder.poison = float("nan")
    with pytest.raises(EngineError):
        chat.ask("a")
    decoder.poison = None
    assert chat.ask("a", max_tokens=3)

    async def read() -> None:
        async for _ in chat.stream("x" * 100):
            pass

    with pytest.raises(ContextFull):
        asyncio.run(read())


def test_wrong_arguments_are_refused_at_once(llm: LLM) -> None:
    with pytest.raises(InvalidInput, match="top_q"):
        llm.session().stream("x", top_q=1)  # type: ignore[call-arg]
    with pytest.raises(InvalidInput, match="made for 1 to 512"):
        llm.session(n_ctx=513)
    with pytest.raises(InvalidInput, match="temperature"):
        llm.session(temperature=-1)


def test_a_sessions_settings_hold_until_a_call_says_otherwise(llm: LLM) -> None:
    chat = llm.session(seed=5, max_tokens=6)
    first = chat.stream("x")
    text = first.result()
    assert first.stats is not None
    assert (first.stats.seed, first.stats.generated_tokens) == (5, 6)
    again = chat.retry(max_tokens=3)
    assert text.startswith(again.result())
    assert again.stats is not None
    assert (again.stats.seed, again.stats.generated_tokens) == (5, 3)


def test_a_saved_session_goes_on(llm: LLM, tmp_path: Path) -> None:
    chat = llm.session(system="s", n_ctx=200)
    chat.ask("one", max_tokens=8, seed=1)
    chat.save(tmp_path / "talk")
    loaded = llm.load_session(tmp_path / "talk")
    assert isinstance(loaded, Session)
    assert (loaded.messages, loaded.n_ctx) == (chat.messages, 200)
    reply = loaded.stream("two", max_tokens=8, seed=1)
    assert reply.result() == chat.ask("two", max_tokens=8, seed=1)
    assert reply.stats is not None
    assert reply.stats.cached_tokens > 0


def test_raw_text_is_continued_and_chat_goes_through_the_template(
    llm: LLM, decoder: FakeDecoder
) -> None:
    raw = llm.generate("abc", raw=True, max_tokens=5, seed=1)
    assert raw.result() == llm.complete("abc", max_tokens=5, seed=1).result()
    assert decoder.sequences[0].tokens[:3] == fake_decoder.tokenizer().encode("abc")
    answered = llm.generate("abc", max_tokens=5, seed=1).result()
    assert answered == llm.session().ask("abc", max_tokens=5, seed=1)
    assert llm.can_chat


def test_scores_run_on_the_engine(llm: LLM) -> None:
    seen: list[str] = []
    result = llm.score(
        "hello there",
        window=8,
        on_progress=lambda *at: seen.append(threading.current_thread().name),
    )
    assert result.perplexity > 1
    assert set(seen) == {"flashllm-engine"}
    with pytest.raises(InvalidInput):
        llm.score("")


def test_a_budget_bounds_weights_and_caches() -> None:
    per_session = kv_bytes(FakeDecoder().config, 512, "f16")
    limit = FIXED_BYTES + 1000 + 2 * per_session
    with LLM(fake_decoder.chat_model()) as llm:
        llm.resize(limit)
        held = [llm.session(), llm.session()]
        with pytest.raises(OutOfBudget, match=r"KV cache.*budget is"):
            llm.session()
        held.pop().close()
        assert llm.session().n_ctx == 512
        assert len(held) == 1
