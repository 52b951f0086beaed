"""Tests of cli/commands.py: what the user types becomes messages and commands."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashllm.cli.commands import COMMANDS, Command, Composer, Message, help_text
from flashllm.errors import InvalidInput


def feed(*lines: str) -> list[Command | Message]:
    composer = Composer()
    return [item for line in lines if (item := composer.feed(line))]


def test_a_line_is_a_message() -> None:
    assert feed("  hello there ") == [Message("hello there")]
    assert feed("", "   ") == []


def test_triple_quotes_hold_several_lines() -> None:
    assert feed('"""one', "", "  two", 'three"""') == [Message("one\n\n  two\nthree")]
    assert feed('"""', "/bye", '"""', "next") == [Message("/bye"), Message("next")]
    assert feed('"""all in one"""') == [Message("all in one")]
    assert feed('"""', '"""') == []
    assert feed('"""""') == []


def test_an_unfinished_message_can_be_dropped() -> None:
    composer = Composer()
    composer.feed('"""begun')
    assert composer.open
    composer.abandon()
    assert not composer.open
    assert composer.feed("fresh") == Message("fresh")


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1))
def test_any_text_without_the_quotes_comes_through(text: str) -> None:
    if '"' not in text and text.strip():
        lines = ['"""', *text.split("\n"), '"""']
        assert feed(*lines) == [Message(text.strip("\n"))]


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("/bye", Command("bye")),
        ("/QUIT", Command("bye")),
        ("/?", Command("help")),
        ("/clear", Command("reset")),
        ("/save my talk.safetensors ", Command("save", "my talk.safetensors")),
        ("/system", Command("system")),
        ("/set temp 0.5", Command("set", "temp 0.5")),
    ],
)
def test_commands(line: str, command: Command) -> None:
    assert feed(line) == [command]


@pytest.mark.parametrize(
    ("line", "words"),
    [("/nonsense", "/help"), ("/save", "/save FILE"), ("/bye now", "no argument")],
)
def test_a_wrong_command_says_what_is_right(line: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        feed(line)


def test_help_lists_every_command() -> None:
    assert all(f"/{name}" in help_text() for name in COMMANDS)
