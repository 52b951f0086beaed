"""Tests of cli/conversation.py: what the user asks for is done, with a model of straw."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flashllm.cli import figures
from flashllm.cli.commands import COMMANDS, Command, Composer, Message
from flashllm.cli.conversation import Conversation
from flashllm.cli.options import SamplingOptions
from flashllm.cli.settings import Settings
from flashllm.errors import ContextFull, CorruptModel, FlashError
from flashllm.generate.events import Done, Event, Prefill, Stats, Token

STATS = Stats(
    ttft_s=0.21,
    prompt_tokens=512,
    cached_tokens=480,
    generated_tokens=31,
    prefill_tok_s=900.0,
    decode_tok_s=142.4,
    context_tokens=543,
    n_ctx=8192,
    seed=7,
    weights_read_bytes=0,
    weights_read_per_token=0.0,
    hit_rate=1.0,
    wait_s=0.0,
    compute_s=0.3,
    active_share=None,
    neurons_read_per_token=0.0,
    manage_s=0.0,
    rss_bytes=400_000_000,
    private_bytes=310_000_000,
    mem_budget=6_000_000_000,
    bytes_read=0,
    bytes_written=0,
)
STREAMED = dataclasses.replace(
    STATS,
    decode_tok_s=0.8149,
    weights_read_bytes=31 * 1_900_000_000,
    weights_read_per_token=1.9e9,
    hit_rate=0.51234,
    wait_s=21.3,
    compute_s=11.9,
    mem_budget=None,
    bytes_written=None,
)


class StrawReply:
    """Says its words; once cancelled, says no more."""

    def __init__(self, words: list[str], error: FlashError | None = None):
        self.words, self.error, self.cancelled = words, error, False

    def cancel(self) -> None:
        self.cancelled = True

    def __iter__(self) -> Iterator[Event]:
        yield Prefill(1, 2)
        if self.error:
            raise self.error
        for number, word in enumerate(self.words):
            if not self.cancelled:
                yield Token(word, number)
        yield Done(STATS, "cancelled" if self.cancelled else "stop")


class StrawSession:
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.calls: list[str] = []
        self.system: str | None = None
        self.messages = (SimpleNamespace(role="user"), SimpleNamespace(role="assistant"))
        self.error: FlashError | None = None

    def stream(self, text: str, **sampling: Any) -> StrawReply:
        self.asked.append((text, sampling))
        return StrawReply(["Hel", "lo"], self.error)

    def retry(self, **sampling: Any) -> StrawReply:
        self.asked.append(("retry", sampling))
        return StrawReply(["Again"])

    def reset(self) -> None:
        self.calls.append("reset")

    def save(self, path: Path) -> None:
        path.write_bytes(b"x" * 2000)

    def close(self) -> None:
        self.calls.append("close")


class StrawScreen:
    """Remembers what was shown. `interrupt` presses Ctrl-C as soon as a reply can be stopped."""

    def __init__(self, interrupt: bool = False):
        self.shown: list[str] = []
        self.notes: list[str] = []
        self.interrupt = interrupt

    def words(self, text: str) -> None:
        self.shown.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def reading(self, done: int, total: int) -> None:
        self.shown.append(f"[{done}/{total}]")

    def end_reply(self) -> None:
        self.shown.append("|")

    @contextlib.contextmanager
    def interruptible(self, cancel: Callable[[], None]) -> Iterator[None]:
        if self.interrupt:
            cancel()
        yield


class Fixture:
    """A conversation, and the straw around it."""

    def __init__(self, interrupt: bool = False):
        self.session, self.loaded = StrawSession(), StrawSession()
        self.screen = StrawScreen(interrupt)
        self.llm = SimpleNamespace(
            name="straw",
            mem_budget=6_000_000_000,
            n_ctx=4096,
            weight_bytes=96_600_000,
            kv_bytes=1_000_000,
            kv_dtype="f16",
            sparse=None,
            load_session=lambda path: self.loaded,
            config=SimpleNamespace(
                n_layers=30,
                hidden_size=576,
                attention=SimpleNamespace(heads=9, kv_heads=3),
                vocab_size=49152,
                family="llama",
                context_length=8192,
            ),
        )
        options = SamplingOptions(-1, 5, None, None, None, None, None)
        settings = Settings(options, {"temperature": 0.2})
        self.conversation = Conversation(self.llm, self.session, self.screen, settings)  # type: ignore[arg-type]
        self.composer = Composer()

    def type(self, *lines: str) -> list[bool]:
        items = [item for line in lines if (item := self.composer.feed(line))]
        return [self.conversation.handle(item) for item in items]


@pytest.fixture
def chat() -> Fixture:
    return Fixture()


def test_a_reply_streams_and_ends_with_its_cost(chat: Fixture) -> None:
    assert chat.type("Hi") == [True]
    assert chat.screen.shown == ["[1/2]", "Hel", "lo", "|"]
    assert chat.screen.notes == [
        "ttft 0.21 s · 512 tok in (480 cached) · 31 out · 142 tok/s · RAM 0.31/6.00 GB · hit 100%"
        " · wrote 0 B"
    ]
    assert chat.session.asked == [("Hi", {"temperature": 0.2, "seed": 5})]


def test_the_cost_tells_what_was_streamed() -> None:
    assert figures.reply_line(STREAMED) == (
        "ttft 0.21 s · 512 tok in (480 cached) · 31 out · 0.815 tok/s · RAM 0.31 GB · hit 51.2%"
        " · read 1.9 GB/tok · wrote ?"
    )
    nearly = dataclasses.replace(STREAMED, hit_rate=0.99999, weights_read_per_token=40_000.0)
    assert "hit 99.9% · read 40 kB/tok" in figures.reply_line(nearly)


def test_a_sparse_model_says_so_and_what_it_computed() -> None:
    sparse = dataclasses.replace(
        STATS, active_share=0.0312, neurons_read_per_token=2.1e6, manage_s=0.043
    )
    assert figures.reply_line(sparse, "predictor").endswith(
        " · sparse: predictor (lossy) · active 3.12% · new 2.1 MB/tok · managed in 43 ms"
    )
    assert figures.reply_line(STATS, "gate").endswith(" · sparse: gate (exact)")
    totals = figures.Totals("oracle")
    for _ in range(2):
        totals.add(sparse)
    told = totals.describe()
    assert "oracle (exact), 3.12% active at last, 2.1 MB of new ones a token" in told
    assert "managing         0.1 s" in told


def test_ctrl_c_keeps_what_came_and_says_so() -> None:
    chat = Fixture(interrupt=True)
    assert chat.type("Hi") == [True]
    assert chat.screen.shown == ["[1/2]", "|"]
    assert chat.screen.notes[0] == "(stopped by you)"


def test_bye_leaves(chat: Fixture) -> None:
    assert chat.type("/bye") == [False]
    assert chat.type("/exit") == [False]


def test_an_error_is_shown_and_the_chat_goes_on(chat: Fixture) -> None:
    chat.session.error = ContextFull("too long; /reset")
    assert chat.type("Hi") == [True]
    assert chat.screen.notes == ["error: too long; /reset"]
    chat.session.error = None
    chat.type("Hi")
    assert "Hel" in chat.screen.shown


def test_retry_moves_a_fixed_seed_on_until_the_next_message(chat: Fixture) -> None:
    chat.type("Hi", "/retry", "/retry", "Ho")
    assert [(text, sampling["seed"]) for text, sampling in chat.session.asked] == [
        ("Hi", 5),
        ("retry", 6),
        ("retry", 7),
        ("Ho", 5),
    ]


def test_read_puts_a_file_before_the_next_message_only(chat: Fixture, tmp_path: Path) -> None:
    notes = tmp_path / "my notes.txt"
    notes.write_text("Some notes.")
    chat.type(f"/read {notes}", "What do they say?", "And now?")
    assert [text for text, _ in chat.session.asked] == [
        "Some notes.\n\nWhat do they say?",
        "And now?",
    ]


def test_what_was_read_waits_for_a_message_that_got_through(chat: Fixture, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("Notes.")
    chat.session.error = ContextFull("too long")
    chat.type(f"/read {tmp_path / 'x'}", "One")
    chat.session.error = None
    chat.type("Two")
    assert chat.session.asked[-1][0] == "Notes.\n\nTwo"


def test_read_refuses_what_cannot_be_read(chat: Fixture, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(2_000_000))
    chat.type(f"/read {tmp_path / 'missing'}", f"/read {large}")
    assert "no file" in chat.screen.notes[0]
    assert "2 MB" in chat.screen.notes[1]


def test_reset_forgets_what_was_read_too(chat: Fixture, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("Notes.")
    chat.type(f"/read {tmp_path / 'x'}", "/reset", "Hi")
    assert chat.session.calls == ["reset"]
    assert chat.session.asked[-1][0] == "Hi"


def test_system_shows_or_sets(chat: Fixture) -> None:
    chat.type("/system", "/system Be brief.", "/system")
    assert chat.session.system == "Be brief."
    assert chat.session.calls == ["reset"]
    assert chat.screen.notes[-1] == "Be brief."


def test_set_changes_the_next_reply(chat: Fixture) -> None:
    chat.type("/set temp 0", "Hi")
    assert chat.session.asked[0][1]["temperature"] == 0.0
    chat.type("/set wit 9")
    assert "there is no setting" in chat.screen.notes[-1]


def test_save_and_load(chat: Fixture, tmp_path: Path) -> None:
    chat.type(f"/save {tmp_path / 'talk'}")
    assert "2 kB" in chat.screen.notes[-1]
    chat.type("/load talk", "Hi")
    assert chat.session.calls == ["close"]
    assert [text for text, _ in chat.loaded.asked] == ["Hi"]


def test_a_file_that_cannot_be_loaded_changes_nothing(chat: Fixture) -> None:
    def refuse(path: Path) -> StrawSession:
        raise CorruptModel("not a session")

    chat.llm.load_session = refuse
    chat.type("/load talk", "Hi")
    assert chat.screen.notes[0] == "error: not a session"
    assert len(chat.session.asked) == 1


def test_stats_and_mem_and_show(chat: Fixture) -> None:
    chat.type("/stats", "Hi", "Ho", "/stats", "/mem", "/show")
    assert chat.screen.notes[0] == "no reply yet"
    stats, memory, shown = chat.screen.notes[-3:]
    assert "replies          2" in stats
    assert "62" in stats
    assert "0 B read from disk, hit 100%" in stats
    assert "0.6 s computing, 0.0 s waiting" in stats
    assert "96.6 MB" in memory
    assert "6 GB" in memory
    assert "straw" in shown


def test_mem_with_a_size_changes_the_budget(chat: Fixture) -> None:
    asked: list[str] = []
    chat.llm.resize = asked.append
    chat.type("/mem 2GB", "/mem auto", "/mem")
    assert asked == ["2GB", "auto"]
    assert all("limit" in note for note in chat.screen.notes[-3:])


def test_stats_sum_what_every_reply_read_and_waited_for(chat: Fixture) -> None:
    for stats in (STREAMED, STREAMED, STATS):
        chat.conversation.totals.add(stats)
    told = chat.conversation.totals.describe()
    assert "118 GB read from disk, hit 100% at last" in told
    assert "24.1 s computing, 42.6 s waiting for the disk" in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_does_something(name: str, chat: Fixture, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    argument = str(tmp_path / "file") if "FILE" in COMMANDS[name][0] else ""
    assert chat.conversation.handle(Command(name, argument)) is (name != "bye")
    assert chat.screen.notes or name == "bye"


def test_messages_come_through_whole(chat: Fixture) -> None:
    chat.conversation.handle(Message("one\ntwo"))
    assert chat.session.asked[0][0] == "one\ntwo"
