"""What is going on, told on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import click

from flashllm.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_BAR_AFTER_S = 0.3  # what is done sooner needs no bar
_LINE_EVERY_S = 10.0


class Report:
    """Tells what is going on. Use it in a `with`, so that an unfinished bar is cleared.

    message(text) starts a stage; progress(done, total) then counts it, in any unit, or
    bytes(done, total), which is shown as sizes.
    """

    def __init__(self, quiet: bool = False, terminal: bool | None = None):
        self.quiet = quiet
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self._stage = ""
        self._next = 0.0
        self._first: tuple[float, int] | None = None  # when the stage's first figure came, and it
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()

    @contextlib.contextmanager
    def keeping(self, folder: Path) -> Iterator[None]:
        """Around work that goes on where it was interrupted: says so then, if `folder` holds it."""
        try:
            yield
        except KeyboardInterrupt:
            self.clear()
            if folder.exists():
                click.echo("what is done is kept: the same command goes on with it", err=True)
            raise

    def message(self, text: str) -> None:
        """Say what happens next; its first word names the stage. Sentences end in a full stop."""
        self.stage(text.split()[0])
        if not self.quiet:
            ending = "" if text.endswith(".") else " ..."
            click.secho(f"{text}{ending}", err=True, dim=self.terminal)

    def stage(self, name: str) -> None:
        """Begin a stage without a word: it shows only if it takes a while."""
        self.clear()
        self._stage = name
        self._first = None
        self._next = time.monotonic() + (_BAR_AFTER_S if self.terminal else _LINE_EVERY_S)

    def progress(self, done: int, total: int) -> None:
        """How far the stage is, as done of total."""
        self._show(done, total, False)

    def bytes(self, done: int, total: int) -> None:
        """How far the stage is, as bytes done of bytes in all."""
        self._show(done, total, True)

    def _show(self, done: int, total: int, sizes: bool) -> None:
        if self.quiet or total <= 0:
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now, done
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif now < self._next:
            return
        elif self.terminal:
            self._bar = _new_bar(sizes)
            self._task = self._bar.add_task(self._stage, completed=done, total=total)
            self._bar.start()
        else:
            self._next = now + _LINE_EVERY_S
            told = f"{100 * done // total} %"
            if sizes and self._first is not None:
                told += f" of {format_size(total)}{_left(self._first, (now, done), total)}"
            click.echo(f"{self._stage}: {told}", err=True)

    def clear(self) -> None:
        """Take the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _left(first: tuple[float, int], last: tuple[float, int], total: int) -> str:
    """How long the rest will take at the rate between two (seconds, done), if that can be told."""
    seconds, came = last[0] - first[0], last[1] - first[1]
    if seconds <= 0 or came <= 0:
        return ""
    left = seconds * (total - last[1]) / came
    return f", {left:.0f} s left" if left < 100 else f", {left / 60:.0f} min left"


def _new_bar(sizes: bool) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        *([DownloadColumn(), TransferSpeedColumn()] if sizes else []),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True),
        transient=True,
    )
