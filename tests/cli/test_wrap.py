"""Tests of cli/wrap.py: nothing is lost, words stay whole, long ones flow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flashllm.cli.wrap import WordWrap


def wrap(columns: int, *pieces: str) -> str:
    wrapper = WordWrap(columns)
    return "".join(map(wrapper.feed, pieces)) + wrapper.end()


def test_words_stay_whole_however_they_arrive() -> None:
    text = "the quick brown fox jumps over the lazy dog"
    expected = "the quick brown fox\njumps over the lazy\ndog"
    assert wrap(20, text) == expected
    assert wrap(20, *text) == expected
    assert wrap(20, text[:7], text[7:9], text[9:]) == expected


def test_a_words_end_is_not_waited_for_at_the_end() -> None:
    wrapper = WordWrap(20)
    assert wrapper.feed("hello") == ""
    assert wrapper.end() == "hello"


def test_lines_of_the_text_itself_stay() -> None:
    assert wrap(20, "a\n\n  b\tc\n") == "a\n\n  b\tc\n"


def test_long_words_and_wide_scripts_flow() -> None:
    address = "https://example.org/" + "x" * 50
    assert wrap(20, f"see {address} there").replace("\n", " ").split() == ["see", address, "there"]
    wrapper = WordWrap(20)
    assert wrapper.feed("日本") == "日本"


@given(st.lists(st.text(alphabet="ab \n日", max_size=30)), st.integers(20, 60))
def test_only_spaces_turn_into_newlines(pieces: list[str], columns: int) -> None:
    text, wrapped = "".join(pieces), wrap(columns, *pieces)
    assert wrapped.split() == text.split() or "日" in text
    assert "".join(wrapped.split()) == "".join(text.split())


@given(st.lists(st.text(alphabet="abc", min_size=1, max_size=6)), st.integers(20, 60))
def test_no_line_is_too_long(words: list[str], columns: int) -> None:
    assert all(len(line) <= columns for line in wrap(columns, " ".join(words)).split("\n"))
