"""Makes docs/chat.svg from a real chat: types into `flashllm chat` in a terminal of its own.

Needs Linux or macOS, and `pip install pyte`. Run: python tools/chat_picture.py
"""

from __future__ import annotations

import io
import os
import pty
import select
import sys
import time
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS, LINES = 112, 26
TYPED = ("Write one sentence about the sea.", "Now one about the mountains.", "/mem")
QUIET_S = 1.0
PATIENCE_S = 120.0


class Terminal(pyte.Screen):
    """A terminal of the mind, with a real program in it."""

    def __init__(self, command: list[str]):
        super().__init__(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self)
        self._child, self._master = pty.fork()
        if self._child == 0:
            os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
            os.execv(command[0], command)

    def write_process_input(self, data: str) -> None:
        """Answer the program, which may ask where the cursor is."""
        os.write(self._master, data.encode())

    def type(self, line: str) -> None:
        """Type a line, and wait until the program asks for the next."""
        os.write(self._master, f"{line}\r".encode())
        self.wait()

    def wait(self) -> None:
        """Watch until the program is quiet at its prompt."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if select.select([self._master], [], [], QUIET_S)[0]:
                self._stream.feed(os.read(self._master, 65536))
            elif self.display[self.cursor.y].startswith(">>>"):
                return

    def leave(self) -> None:
        """Press Ctrl-D."""
        os.write(self._master, b"\x04")
        os.waitpid(self._child, 0)

    def select_graphic_rendition(self, *attributes: int, **kwargs: bool) -> None:
        """pyte does not know dim text (2): let it be bright black (90)."""
        known = (90 if attribute == 2 else attribute for attribute in attributes)
        super().select_graphic_rendition(*known, **kwargs)

    def row(self, number: int) -> Text:
        """A line of the screen with its styles."""
        text = Text()
        for column in range(COLUMNS):
            cell = self.buffer[number][column]
            text.append(cell.data, style="dim" if cell.fg == "brightblack" else "")
        text.rstrip()
        return text


def main() -> None:
    """Chat, and write the picture."""
    command = [sys.executable, "-m", "flashllm", "chat", "--seed", "1"]
    terminal = Terminal(command)
    terminal.wait()
    for line in TYPED:
        terminal.type(line)
    picture = Console(record=True, width=COLUMNS, file=io.StringIO())
    picture.print(Text("$ python -m flashllm chat", style="bold"))
    for number in range(terminal.cursor.y):
        picture.print(terminal.row(number), no_wrap=True)
    target = Path(__file__).parents[1] / "docs" / "chat.svg"
    target.write_text(picture.export_svg(title="flashllm"), encoding="utf-8")
    terminal.leave()


if __name__ == "__main__":
    main()
