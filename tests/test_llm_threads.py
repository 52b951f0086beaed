"""Tests of LLM from many threads: order, cancel, slow and absent readers, closing."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fake_decoder
import pytest
from fake_decoder import FakeDecoder

from flashllm.errors import EngineError
from flashllm.generate import engine
from flashllm.generate.events import Prefill, Token
from flashllm.generate.reply import CAPACITY
from flashllm.generate.template import Message
from flashllm.llm import LLM

WAIT_S = 20


@pytest.fixture
def decoder() -> FakeDecoder:
    return FakeDecoder(ends=0.0)


@pytest.fixture
def llm(decoder: FakeDecoder) -> Iterator[LLM]:
    with LLM(fake_decoder.chat_model(decoder), name="fake") as opened:
        yield opened


class Gate:
    """Holds the fake model before its nth layer until the test opens it."""

    def __init__(self, decoder: FakeDecoder, layer: int = 0) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        self._layer = decoder.layers_run + layer
        decoder.before_layer = self._pass

    def _pass(self, count: int) -> None:
        if count >= self._layer:
            self.reached.set()
            assert self.open.wait(WAIT_S)

    def wait(self) -> None:
        assert self.reached.wait(WAIT_S)


def alone(text: str, **options: object) -> str:
    """What a model of its own replies to `text`."""
    with LLM(fake_decoder.chat_model(FakeDecoder(ends=0.0))) as llm:
        return llm.session().ask(text, **options)  # type: ignore[arg-type]


def test_eight_threads_get_what_they_would_get_alone(llm: LLM) -> None:
    questions = [f"question {i}" for i in range(8)]

    def talk(question: str) -> list[str]:
        chat = llm.session()
        return [chat.ask(question, max_tokens=15, seed=2), chat.ask("more", max_tokens=9, seed=3)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(talk, questions))
    assert together == [talk(question) for question in questions]
    assert together[0][0] == alone(questions[0], max_tokens=15, seed=2)


def test_two_models_share_one_engine_thread(llm: LLM) -> None:
    with LLM(fake_decoder.chat_model(FakeDecoder(ends=0.0))) as other:
        assert other.session().ask("a", max_tokens=5, seed=1) == llm.session().ask(
            "a", max_tokens=5, seed=1
        )
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("flashllm-engine") == 1
    assert llm.session().ask("a", max_tokens=5)


def test_the_last_close_ends_the_engine_thread() -> None:
    llm = LLM(fake_decoder.chat_model())
    llm.close()
    llm.close()
    assert "flashllm-engine" not in [thread.name for thread in threading.enumerate()]


def test_replies_of_one_session_keep_their_order(llm: LLM) -> None:
    chat = llm.session()
    replies = [chat.stream(f"m{i}", max_tokens=4, seed=1) for i in range(5)]
    for reply in replies:
        reply.result()
    asked = [message.content for message in chat.messages if message.role == "user"]
    assert asked == [f"m{i}" for i in range(5)]


@pytest.mark.parametrize("layer", [0, 2, 7, 20, 33])
def test_cancel_from_another_thread_stops_within_one_layer(
    layer: int, llm: LLM, decoder: FakeDecoder
) -> None:
    gate = Gate(decoder, layer)
    chat = llm.session()
    reply = chat.stream("hello there", seed=1)
    gate.wait()
    reply.cancel()
    gate.open.set()
    assert alone("hello there", seed=1).startswith(reply.result())
    assert reply.reason == "cancelled"
    assert decoder.layers_run == layer + 1
    assert chat.messages[-1] == Message("assistant", reply.text)
    kept = chat.messages
    follow_up = chat.ask("next", max_tokens=10, seed=1)
    with LLM(fake_decoder.chat_model(FakeDecoder(ends=0.0))) as other:
        assert other.session(messages=kept).ask("next", max_tokens=10, seed=1) == follow_up


def test_a_reply_cancelled_in_the_queue_never_starts(llm: LLM, decoder: FakeDecoder) -> None:
    gate = Gate(decoder)
    first = llm.session().stream("a", max_tokens=2)
    gate.wait()
    second = llm.session().stream("b", max_tokens=2)
    second.cancel()
    gate.open.set()
    first.result()
    before = decoder.layers_run
    assert second.result() == ""
    assert decoder.layers_run <= before + 1


def test_a_slow_reader_holds_up_nobody_and_loses_nothing(llm: LLM) -> None:
    slow = llm.session().stream("hello", max_tokens=300, seed=1)
    assert llm.session().ask("other", max_tokens=5)
    assert slow._channel.ended
    assert len(slow._channel._events) <= CAPACITY + 2
    text = "".join(event.text for event in slow if isinstance(event, Token))
    assert text == alone("hello", max_tokens=300, seed=1)


def test_a_dropped_reply_is_cancelled(llm: LLM, decoder: FakeDecoder) -> None:
    gate = Gate(decoder, 12)
    chat = llm.session()
    reply = chat.stream("hello")
    gate.wait()
    channel = reply._channel
    del reply
    gc.collect()
    gate.open.set()
    channel.wait()
    assert channel.done is not None
    assert channel.done.reason == "cancelled"


def test_a_dropped_session_gives_its_memory_back(llm: LLM, decoder: FakeDecoder) -> None:
    assert llm.session().ask("x", max_tokens=2) is not None
    gc.collect()
    assert llm.kv_bytes == 0
    llm.score("hello there")  # passes through the engine's queue
    assert decoder.sequences[0].closed


def test_closing_a_session_cancels_its_reply(llm: LLM, decoder: FakeDecoder) -> None:
    gate = Gate(decoder, 5)
    chat = llm.session()
    reply = chat.stream("hello")
    gate.wait()
    chat.close()
    gate.open.set()
    reply.result()
    assert reply.reason == "cancelled"


def test_closing_the_model_stops_everything(decoder: FakeDecoder) -> None:
    llm = LLM(fake_decoder.chat_model(decoder), name="fake")
    chat = llm.session()
    gate = Gate(decoder, 5)
    replies = [chat.stream("hello"), llm.session().stream("x")]
    gate.wait()
    closer = threading.Thread(target=llm.close)
    closer.start()
    while not llm._service._closed:
        pass
    gate.open.set()
    closer.join(WAIT_S)
    assert decoder.closed
    assert all(sequence.closed for sequence in decoder.sequences)
    for reply in replies:
        reply.result()
        assert reply.reason == "cancelled"
    for late in (lambda: chat.stream("y"), lambda: chat.save("x"), lambda: llm.score("a b")):
        with pytest.raises(EngineError, match="fake is closed"):
            late()


def test_undo_reset_and_system_wait_for_the_reply(llm: LLM, decoder: FakeDecoder) -> None:
    chat = llm.session(system="s")
    gate = Gate(decoder, 4)
    reply = chat.stream("hello", max_tokens=5)
    gate.wait()
    threading.Timer(0.01, gate.open.set).start()
    assert chat.undo() == "hello"
    assert reply.reason == "length"
    assert chat.messages == (Message("system", "s"),)
    chat.system = "t"
    chat.ask("x", max_tokens=2)
    chat.reset()
    assert (chat.system, len(chat.messages)) == ("t", 1)
    chat.system = None
    assert chat.messages == ()


def test_the_engine_runs_calls_from_its_own_thread_in_place() -> None:
    with engine.borrowed() as runner:
        assert runner.call(lambda: runner.call(lambda: 7)) == 7
        with pytest.raises(ZeroDivisionError):
            runner.call(lambda: 1 // 0)


def test_an_async_reader_whose_loop_is_gone_does_not_hurt_the_engine(
    llm: LLM, decoder: FakeDecoder
) -> None:
    gate = Gate(decoder, 5)
    reply = llm.session().stream("hello", max_tokens=30, seed=1)
    reader = aiter(reply)
    loop = asyncio.new_event_loop()
    assert isinstance(loop.run_until_complete(anext(reader)), Prefill)
    loop.close()
    gate.open.set()
    assert llm.session().ask("x", max_tokens=3)
    assert reply.result() == alone("hello", max_tokens=30, seed=1)
    with pytest.raises(StopIteration):
        reader.aclose().send(None)


def test_a_program_that_forgets_to_close_still_ends(tmp_path: Path) -> None:
    program = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "import fake_decoder\n"
        "from flashllm.llm import LLM\n"
        "llm = LLM(fake_decoder.chat_model(fake_decoder.FakeDecoder(ends=0.0)))\n"
        "reply = llm.session().stream('hello')\n"
        "next(iter(reply)); print('leaving')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "leaving\n", "")
