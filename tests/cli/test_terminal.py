"""Tests of cli/terminal.py and chat in a real terminal: prompt, stream, Ctrl-C, Ctrl-D."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny

from flashllm.cli.output import harmless

pty = pytest.importorskip("pty", reason="pseudo-terminals are a Unix thing")


class Child:
    """flashllm in a pseudo-terminal."""

    def __init__(self, *args: str):
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.environ |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
            os.execv(sys.executable, [sys.executable, "-m", "flashllm", *args])
        self.seen = ""

    def expect(self, text: str, timeout_s: float = 60.0) -> str:
        """What was shown up to `text`, newly."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # Linux: the child has gone
                    data = b""
                assert data, f"the child left; no {text!r} in {self.seen!r}"
                self.seen += data.decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def exit_code(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def chat(tmp_path: Path) -> Iterator[Child]:
    model = tiny.model_dir(tmp_path)
    child = Child("chat", "-m", str(model), "--backend", "reference", "-n", "8", "--seed", "1")
    yield child
    os.close(child.master)


def test_a_chat(chat: Child, tmp_path: Path) -> None:
    chat.expect("Ctrl-D leaves")
    chat.expect(">>>")
    chat.type("hello\r")
    chat.expect("ttft")
    chat.expect(">>>")
    chat.type("/nonsense\r")
    chat.expect("/help lists them")
    chat.expect(">>>")
    chat.type("\x03")
    chat.expect("/bye leaves")
    chat.expect(">>>")
    chat.type(f"/save {tmp_path / 'talk'}\r")
    chat.expect("saved to")
    chat.expect(">>>")
    chat.type("\x04")
    assert chat.exit_code() == 0
    assert (tmp_path / "talk").stat().st_size > 0


def test_ctrl_c_stops_a_reply_and_the_chat_goes_on(chat: Child) -> None:
    chat.expect(">>>")
    chat.type("/set n -1\r")
    chat.expect(">>>")
    chat.type("hello\r")
    chat.expect("hello")
    time.sleep(0.05)
    os.kill(chat.pid, signal.SIGINT)
    chat.expect("ttft")
    chat.expect(">>>")
    chat.type("/bye\r")
    assert chat.exit_code() == 0


def test_a_terminal_gets_no_orders() -> None:
    assert harmless("a\x1b[2Jb\tc\nd\x07\x9b") == "a\ufffd[2Jb\tc\nd\ufffd\ufffd"
    assert harmless("λ 日本 🙂") == "λ 日本 🙂"
