"""Tests of flash/lock.py: one holder at a time, across threads and through every system's call."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import IO

import pytest

from flashllm.errors import ModelIOError
from flashllm.flash.lock import locked


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    waiting, order = threading.Event(), []

    def second() -> None:
        with locked(tmp_path / "lock", on_wait=waiting.set, poll_s=0.01):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "lock"):
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EDEADLK])  # as Windows refuses
def test_a_refusal_in_windows_words_is_waited_out(tmp_path: Path, code: int) -> None:
    refusals = [code, code]
    waits: list[int] = []

    def try_lock(file: IO[bytes]) -> None:
        if refusals:
            raise OSError(refusals.pop(), "held")

    with locked(tmp_path / "lock", lambda: waits.append(1), try_lock, poll_s=0.001):
        assert waits == [1]


def test_a_disk_that_cannot_lock_does_not_stop_us(tmp_path: Path) -> None:
    def try_lock(file: IO[bytes]) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    with locked(tmp_path / "lock", try_lock=try_lock):
        pass


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelIOError, match="cannot write"), locked(tmp_path / "file" / "lock"):
        pass
