"""The memory of open models: resized under replies, shared by sessions, following the system."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fake_decoder
import pytest
import streamed
import tiny
from fake_decoder import FakeDecoder
from streamed import Streamed

import flashllm
from flashllm import machine
from flashllm.cache.policy import smallest_room
from flashllm.errors import Cancelled, CorruptModel, InvalidInput, OutOfBudget
from flashllm.flash import layout
from flashllm.generate import model_memory
from flashllm.generate.pressure import GROW_S, LOOK_S, MemoryWatch, Reading
from flashllm.generate.score import scratch_bytes
from flashllm.llm import LLM
from flashllm.model.memory import FIXED_BYTES, budget_for

WAIT_S = 20
N_CTX = 128
QUESTION = "what is the capital of france? "


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    streamed.small_reads(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2 MB in about 200 units, with words."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "UNIT_TARGET", 8 << 10)
        parent = tmp_path_factory.mktemp("model")
        return tiny.model_dir(parent, layers=6, ffn=256, vocab=1024, context=256)


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX) as opened:
        yield opened


def budget(llm: LLM, folder: Path, share: float, more: int = 0) -> int:
    """What gives the weights `share` of what lies between the least that works and all."""
    scan = Streamed.read(folder).scan
    least = smallest_room(scan)
    beside = llm._service.memory._beside + llm._service.model.decoder.scratch_bytes
    return budget_for(least + int(share * (scan.nbytes - least)), beside + more, 0)


def ask(llm: LLM) -> str:
    session = llm.session(temperature=0, max_tokens=16)
    try:
        return session.ask(QUESTION)
    finally:
        session.close()


class Busy:
    """A reply of the fake model that does not get past a layer until it is let."""

    def __init__(self, llm: LLM, decoder: FakeDecoder) -> None:
        self.layers = threading.Semaphore(0)
        self.waiting = threading.Semaphore(0)
        decoder.before_layer = self._wait
        self.reply = llm.session().stream("hello", max_tokens=200, seed=1)
        assert self.waiting.acquire(timeout=WAIT_S)

    def _wait(self, count: int) -> None:
        self.waiting.release()
        assert self.layers.acquire(timeout=WAIT_S)

    def let(self, layers: int) -> None:
        """Let it run so many layers, and wait until it stands before the next."""
        for _ in range(layers):
            self.layers.release()
            assert self.waiting.acquire(timeout=WAIT_S)


def test_a_resize_takes_effect_between_two_layers_of_a_reply() -> None:
    decoder = FakeDecoder(ends=0.0)
    with LLM(fake_decoder.chat_model(decoder)) as llm:
        busy = Busy(llm, decoder)
        busy.let(7)
        limit = 10 * FIXED_BYTES
        thread = threading.Thread(target=llm.resize, args=(limit,))
        thread.start()
        while llm._service._engine._urgent.empty():
            pass
        assert llm.mem_budget is None
        busy.let(1)
        assert llm.mem_budget == limit
        thread.join(WAIT_S)
        with pytest.raises(OutOfBudget):
            in_turn(llm, busy, lambda: llm.resize(1))
        assert llm.mem_budget == limit
        decoder.before_layer = lambda count: None
        busy.layers.release()
        text = busy.reply.result()
    with LLM(fake_decoder.chat_model(FakeDecoder(ends=0.0))) as other:
        assert other.session().ask("hello", max_tokens=200, seed=1) == text


def in_turn(llm: LLM, busy: Busy, call: Callable[[], object]) -> None:
    """Make a call that is urgent, let a layer run, and raise what it raises."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while llm._service._engine._urgent.empty():
        pass
    busy.let(1)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_a_session_that_needs_room_waits_for_one_layer_only() -> None:
    decoder = FakeDecoder(ends=0.0)
    with LLM(fake_decoder.chat_model(decoder)) as llm:
        llm.resize(2 * FIXED_BYTES)
        busy = Busy(llm, decoder)
        kept: list[object] = []
        in_turn(llm, busy, lambda: kept.append(llm.session()))
        assert len(kept) == 1
        decoder.before_layer = lambda count: None
        busy.layers.release()
        busy.reply.cancel()


def test_replies_are_the_same_while_the_budget_changes(llm: LLM, folder: Path) -> None:
    expected = ask(llm)
    chat = llm.session(temperature=0, max_tokens=40)
    whole = chat.ask(QUESTION * 3)
    another = llm.kv_bytes
    choices = [budget(llm, folder, share, another) for share in (0.0, 0.9, 0.4, 0.1)]
    stop = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        for limit in itertools.cycle([*choices, None, "auto", "4GB"]):
            if stop.is_set():
                return
            llm.resize(limit)
            changes += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(3):
            chat.reset()
            assert chat.ask(QUESTION * 3) == whole
            assert ask(llm) == expected
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert changes > 10


@pytest.mark.skipif(sys.platform != "linux", reason="tells private memory on Linux")
def test_shrinking_gives_memory_back_and_growing_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # reads and buffers of the usual size
    folder = tiny.model_dir(tmp_path, layers=4, hidden=256, ffn=4096, vocab=1024)
    size = Streamed.read(folder).scan.nbytes
    assert size > 50_000_000
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX) as llm:
        expected = ask(llm)
        for _ in range(2):
            before = machine.private_rss()
            llm.resize(budget(llm, folder, 0))
            assert llm.weight_bytes < 0.7 * size
            given = size - llm.weight_bytes
            assert before - machine.private_rss() > 0.9 * given
            assert ask(llm) == expected
            seen: list[tuple[int, int]] = []
            llm.resize(None, lambda *at, seen=seen: seen.append(at))
            assert seen[-1][0] == seen[-1][1] > 0
            assert ask(llm) == expected
        with pytest.raises(Cancelled):
            llm.resize(budget(llm, folder, 0.1))
            llm.resize(None, stop)
        assert llm.mem_budget == budget(llm, folder, 0.1)
        assert ask(llm) == expected


def stop(done: int, total: int) -> None:
    raise Cancelled("enough")


def test_texts_for_budgets(llm: LLM) -> None:
    llm.resize("3GB")
    assert llm.mem_budget == 3_000_000_000
    llm.resize("1.5x")
    assert llm.mem_budget == 200_000_000 + int(1.5 * llm._service.model.decoder.weight_bytes)
    llm.resize("auto")
    assert llm.mem_budget is not None
    llm.resize(None)
    assert llm.mem_budget is None
    with pytest.raises(InvalidInput):
        llm.resize("much")


def test_sessions_take_room_from_weights_and_give_it_back(llm: LLM, folder: Path) -> None:
    expected = ask(llm)
    llm.resize(budget(llm, folder, 0.9))
    had = llm.weight_bytes
    first, second = llm.session(), llm.session(n_ctx=32, temperature=0, max_tokens=16)
    assert llm.kv_bytes > 0
    shrunk = llm.weight_bytes
    assert shrunk < had
    assert second.ask("what") == llm.session(temperature=0, max_tokens=16).ask("what")
    with pytest.raises(OutOfBudget, match="KV cache"):
        for _ in range(99):
            kept = [llm.session() for _ in range(99)]
    assert ask(llm) == expected
    assert first.n_ctx == N_CTX
    del first
    second.close()
    limit = llm.mem_budget
    llm.resize(limit)
    assert llm.weight_bytes == had
    assert "kept" not in locals()


def test_the_budget_holds_for_all_models_together(llm: LLM, folder: Path) -> None:
    limit = budget(llm, folder, 0.5) + budget(llm, folder, 0.5) - FIXED_BYTES
    llm.resize(budget(llm, folder, 0.5))
    expected = ask(llm)
    with LLM.open(folder, mem_budget=limit, n_ctx=N_CTX) as other:
        assert model_memory.committed() <= limit
        assert other.weight_bytes < Streamed.read(folder).scan.nbytes
        assert ask(other) == expected
        with pytest.raises(OutOfBudget, match="other open models"):
            other.resize(budget(llm, folder, 0.5))
        with pytest.raises(OutOfBudget, match="other open models"):
            LLM.open(folder, mem_budget=limit, n_ctx=N_CTX)
        had = other.weight_bytes
        llm.close()
        other.resize(limit)
        assert other.weight_bytes > had
        assert ask(other) == expected


def test_a_default_context_too_large_is_refused_with_one_that_fits(folder: Path, llm: LLM) -> None:
    limit = budget(llm, folder, 0)
    llm.close()
    with pytest.raises(OutOfBudget, match=r"context of (\d+) tokens, which fits \(-c\)") as caught:
        LLM.open(folder, mem_budget=limit)  # 256 tokens
    said = int(str(caught.value).partition("a context of ")[2].split()[0])
    assert 64 < said < 256
    with LLM.open(folder, mem_budget=limit, n_ctx=said) as other:
        assert other.session().n_ctx == said
    with pytest.raises(OutOfBudget):
        LLM.open(folder, mem_budget=limit, n_ctx=said + 32)


def test_a_resize_that_fails_leaves_the_replies_right(tmp_path: Path, folder: Path) -> None:
    model = Streamed.read(folder)
    with LLM.open(folder, mem_budget=None, n_ctx=N_CTX) as llm:
        expected = ask(llm)
        low = budget(llm, folder, 0.1)
        llm.resize(low)
        streamed.damage(model, "layers.3.ffn", 1)
        try:
            with pytest.raises(CorruptModel, match=r"unit 1 of 'layers\.3\.ffn'"):
                llm.resize(None)
        finally:
            streamed.damage(model, "layers.3.ffn", 1)
        assert llm.mem_budget == low
        assert ask(llm) == expected
        llm.resize(None)
        assert ask(llm) == expected


class System:
    """Stands in for what the system says of its memory, and for its clock."""

    total = 100 << 20

    def __init__(self, patch: pytest.MonkeyPatch, allowed: int) -> None:
        self.allowed = allowed
        self.now = 0.0
        patch.setattr(model_memory, "watch", MemoryWatch(self._read, lambda: self.now))

    def _read(self) -> Reading:
        return Reading(self.allowed, self.total)


def test_auto_follows_what_other_programs_leave(
    folder: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ask(llm)
    some, less = budget(llm, folder, 0.9), budget(llm, folder, 0.2)
    llm.close()
    system = System(monkeypatch, allowed=some)
    system.total = 20 << 20
    said: list[str] = []
    with LLM.open(folder, mem_budget="auto", n_ctx=N_CTX, on_message=said.append) as auto:
        assert auto.weight_bytes == Streamed.read(folder).scan.nbytes
        reply = auto.session(temperature=0, max_tokens=16).stream(QUESTION)
        reply.result()
        assert said == []
        system.now += LOOK_S
        system.allowed = less
        assert ask(auto) == expected
        assert auto.mem_budget == less
        assert len(said) == 1
        assert said[0].startswith("memory is short: using 1")
        had = auto.weight_bytes
        assert had < Streamed.read(folder).scan.nbytes
        system.now += LOOK_S
        assert ask(auto) == expected
        system.allowed = less + (8 << 20)
        system.now += LOOK_S
        assert ask(auto) == expected
        assert auto.weight_bytes == had  # too soon
        system.now += GROW_S
        assert ask(auto) == expected
        assert auto.weight_bytes > had
        assert said[1].startswith("memory is free again: using 1")
        system.allowed = 1
        system.now += LOOK_S
        assert ask(auto) == expected
        least = auto.weight_bytes
        assert least <= budget(auto, folder, 0)
        assert len(said) == 3
        for _ in range(3):
            system.now += LOOK_S
            assert ask(auto) == expected
        assert len(said) == 3  # at the least that works there is no more to give


def test_a_budget_that_was_said_is_kept_however_short_memory_is(
    folder: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = budget(llm, folder, 0.8)
    llm.resize(limit)
    system = System(monkeypatch, allowed=1)
    system.now += LOOK_S
    expected = ask(llm)
    assert llm.mem_budget == limit
    system.now += LOOK_S
    llm.resize("auto")
    assert ask(llm) == expected


def test_a_session_under_auto_may_use_what_has_become_free(
    folder: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = budget(llm, folder, 0)
    session = llm.session()
    two = 2 * llm.kv_bytes
    session.close()
    llm.close()
    system = System(monkeypatch, allowed=least + two)
    with LLM.open(folder, mem_budget="auto", n_ctx=N_CTX) as auto:
        auto._service.call(lambda: auto._service.memory.give_back(least))
        assert auto.mem_budget == least
        sessions = [auto.session() for _ in range(3)]
        assert auto.mem_budget == system.allowed
        with pytest.raises(OutOfBudget, match="KV cache"):
            sessions.append(auto.session())
        assert len(sessions) == 3


def test_scoring_borrows_room_from_the_weights(llm: LLM, folder: Path) -> None:
    text = tiny.CORPUS * 2
    expected = llm.score(text, window=64).perplexity
    borrowed = scratch_bytes(llm.config.vocab_size)
    llm.resize(budget(llm, folder, 0.5))
    with pytest.raises(OutOfBudget, match="needed"):
        llm.score(text, window=64)
    limit = budget(llm, folder, 0, 2 * borrowed)
    llm.resize(limit)
    had = llm.weight_bytes
    assert llm.score(text, window=64).perplexity == expected
    llm.resize(limit)
    assert llm.weight_bytes == had


def test_a_resize_does_not_wait_for_scoring_to_end(llm: LLM) -> None:
    reached, go = threading.Event(), threading.Event()
    limits: list[int | None] = []

    def on_progress(done: int, total: int) -> None:
        limits.append(llm.mem_budget)
        if done < total / 2:
            reached.set()
            assert go.wait(WAIT_S)

    scoring = threading.Thread(
        target=lambda: llm.score(tiny.CORPUS * 4, window=16, on_progress=on_progress)
    )
    scoring.start()
    assert reached.wait(WAIT_S)
    resizing = threading.Thread(target=llm.resize, args=("3GB",))
    resizing.start()
    while llm._service._engine._urgent.empty():
        pass
    go.set()
    resizing.join(WAIT_S)
    scoring.join(WAIT_S)
    assert limits[0] is None
    assert limits[-1] == 3_000_000_000


def test_a_conversation_may_be_told_that_memory_is_short(
    folder: Path, llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the package's `load` passes it on."""
    less = budget(llm, folder, 0.2)
    llm.close()
    system = System(monkeypatch, allowed=10 * FIXED_BYTES)
    system.total = 20 << 20
    said: list[str] = []
    with flashllm.load(folder, n_ctx=N_CTX, on_message=said.append) as loaded:
        system.allowed = less
        system.now += LOOK_S
        ask(loaded)
    assert len(said) == 1
