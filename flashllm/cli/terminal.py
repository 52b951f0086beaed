"""The terminal a chat runs in: typed lines in, streamed words and dim notes out."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.output import create_output
from prompt_toolkit.shortcuts import CompleteStyle

from flashllm.cli.commands import COMMANDS
from flashllm.cli.output import harmless, write
from flashllm.cli.report import Report
from flashllm.cli.wrap import WordWrap


class Terminal:
    """The user's terminal, as a conversation's Screen and as the source of lines."""

    def __init__(self) -> None:
        self._report = Report(terminal=True)
        self._wrap = WordWrap(shutil.get_terminal_size().columns)
        self._at_line_start = True
        # Nothing typed reaches the disk: the history lasts as long as the chat.
        self._prompt: PromptSession[str] = PromptSession(
            history=InMemoryHistory(),
            completer=_CommandCompleter(),
            complete_style=CompleteStyle.READLINE_LIKE,  # by Tab: no room is kept for a menu
            complete_while_typing=False,
            output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
        )

    def ask(self, more: bool) -> str:
        """The next line. Raises EOFError on Ctrl-D, KeyboardInterrupt on Ctrl-C."""
        return self._prompt.prompt("... " if more else ">>> ")

    def words(self, text: str) -> None:
        self._report.clear()
        self._show(self._wrap.feed(harmless(text)))

    def note(self, text: str) -> None:
        self._report.clear()
        click.secho(harmless(text), err=True, dim=True)

    def reading(self, done: int, total: int) -> None:
        self._report.progress(done, total)

    def end_reply(self) -> None:
        self._report.clear()
        self._show(self._wrap.end())
        if not self._at_line_start:
            self._show("\n")

    def _show(self, text: str) -> None:
        if text:
            write(text)
            self._at_line_start = text.endswith("\n")

    @contextlib.contextmanager
    def interruptible(self, cancel: Callable[[], None]) -> Iterator[None]:
        def on_interrupt(number: int, frame: FrameType | None) -> None:
            cancel()

        self._report.stage("reading the prompt")
        self._wrap = WordWrap(shutil.get_terminal_size().columns)
        earlier = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, earlier)
            self._report.clear()


class _CommandCompleter(Completer):
    """Completes slash commands at the start of a line."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        word = document.text_before_cursor
        if word.startswith("/") and " " not in word:
            for name, (argument, what) in COMMANDS.items():
                if name.startswith(word[1:]):
                    yield Completion(
                        f"/{name}", -len(word), f"/{name} {argument}", display_meta=what
                    )
