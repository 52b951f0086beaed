"""A chat with a model: does what each line of the user's asks, on a screen it knows nothing of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flashllm.cli import figures
from flashllm.cli.commands import Command, Message, help_text
from flashllm.cli.options import existing_file
from flashllm.cli.settings import Settings
from flashllm.errors import FlashError, InvalidInput
from flashllm.generate.events import Done, Prefill, Token
from flashllm.generate.reply import Reply
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.llm import LLM, Session

_REASONS = {
    "length": "(stopped: that is as many tokens as -n allows)",
    "context": "(stopped: the context is full; /reset starts over)",
    "cancelled": "(stopped by you)",
}
_MAX_READ = 1 << 20


class Screen(Protocol):
    """Where a conversation shows itself."""

    def words(self, text: str) -> None:
        """Some of the model's reply."""

    def note(self, text: str) -> None:
        """Something flashllm has to say."""

    def reading(self, done: int, total: int) -> None:
        """How far the prompt is read."""

    def end_reply(self) -> None:
        """The reply is over."""

    def interruptible(self, cancel: Callable[[], None]) -> AbstractContextManager[None]:
        """While this lasts, the user's Ctrl-C calls `cancel` and nothing else."""


class Conversation:
    """The user's side of one session: what is said, and what the slash commands do."""

    def __init__(self, llm: LLM, session: Session, screen: Screen, settings: Settings):
        self.llm = llm
        self.session = session
        self.screen = screen
        self.settings = settings
        self.totals = figures.Totals(llm.sparse)
        self._attached: list[str] = []
        self._attempt = 0
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: screen.note(help_text()),
            "reset": lambda _: self._reset(),
            "save": self._save,
            "load": self._load,
            "system": self._system,
            "set": self._set,
            "show": lambda _: screen.note(figures.model_lines(llm)),
            "stats": lambda _: screen.note(self.totals.describe()),
            "mem": self._mem,
            "retry": lambda _: self._retry(),
            "read": self._read,
        }

    def handle(self, item: Command | Message) -> bool:
        """Do what the user asks; False if that is to leave. Errors are shown, the chat goes on."""
        try:
            if isinstance(item, Message):
                self.say(item.text)
            elif item.name == "bye":
                return False
            else:
                self._commands[item.name](item.argument)
        except FlashError as error:
            self.screen.note(f"error: {error}")
        return True

    def say(self, text: str) -> None:
        """Say `text`, after whatever /read put in front of it, and show the reply."""
        self._attempt = 0
        message = "\n\n".join([*self._attached, text])
        self._show(self.session.stream(message, **self.settings.sampling()))
        self._attached.clear()

    def _show(self, reply: Reply) -> None:
        with self.screen.interruptible(reply.cancel):
            for event in reply:
                if isinstance(event, Prefill):
                    self.screen.reading(event.done, event.total)
                elif isinstance(event, Token):
                    self.screen.words(event.text)
                elif isinstance(event, Done):
                    self._finish(event)

    def _finish(self, done: Done) -> None:
        self.screen.end_reply()
        if done.reason in _REASONS:
            self.screen.note(_REASONS[done.reason])
        self.totals.add(done.stats)
        self.screen.note(figures.reply_line(done.stats, self.llm.sparse))

    def _retry(self) -> None:
        self._attempt += 1
        self._show(self.session.retry(**self.settings.sampling(self._attempt)))

    def _reset(self) -> None:
        self.session.reset()
        self._attached.clear()
        self.screen.note("the conversation is forgotten")

    def _system(self, text: str) -> None:
        if text:
            self.session.reset()
            self.session.system = text
            self.screen.note("system prompt set; the conversation starts over")
        else:
            self.screen.note(self.session.system or "no system prompt but the model's own")

    def _set(self, text: str) -> None:
        if text:
            self.settings.change(text)
        self.screen.note(self.settings.describe())

    def _mem(self, size: str) -> None:
        if size:
            self.llm.resize(size)
        self.screen.note(figures.memory_lines(self.llm))

    def _save(self, file: str) -> None:
        path = Path(file).expanduser()
        self.session.save(path)
        self.screen.note(f"saved to {path} ({format_size(path.stat().st_size)})")

    def _load(self, file: str) -> None:
        session = self.llm.load_session(Path(file).expanduser())
        self.session.close()
        self.session = session
        turns = sum(message.role == "user" for message in session.messages)
        self.screen.note(f"loaded {file}: {turns} messages of yours so far")

    def _read(self, file: str) -> None:
        path = existing_file(file)
        if (size := path.stat().st_size) > _MAX_READ:
            raise InvalidInput(
                f"{path} has {format_size(size)}; /read takes {format_size(_MAX_READ)}"
            )
        text = path.read_text(encoding="utf-8", errors="replace")
        self._attached.append(text)
        self.screen.note(f"read {path} ({len(text)} characters); it goes before your next message")
