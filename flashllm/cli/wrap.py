"""Breaks streamed text between words: a terminal alone would break inside them."""

from __future__ import annotations

from prompt_toolkit.utils import get_cwidth


class WordWrap:
    """Text in pieces, lines in so many columns. A word is held back until it is known to fit.

    Only words of up to a third of a line are kept whole: longer ones, such as addresses, and
    scripts of wide characters without spaces, flow on as they come.
    """

    def __init__(self, columns: int):
        self._columns = max(columns, 20)
        self._column = 0
        self._word = ""
        self._width = 0
        self._flowing = False

    def feed(self, text: str) -> str:
        """What of `text`, and of what was held back, can be shown now."""
        return "".join(self._character(character) for character in text)

    def end(self) -> str:
        """What is still held back."""
        return self._place()

    def _character(self, character: str) -> str:
        if character == "\n":
            word = self._place()
            self._column, self._flowing = 0, False
            return word + character
        if character.isspace():
            word = self._place()
            self._flowing = False
            if self._column + 1 >= self._columns:
                self._column = 0
                return word + "\n"
            self._column += 1
            return word + character
        width = get_cwidth(character)
        self._word += character
        self._width += width
        if self._flowing or width > 1 or self._width > self._columns // 3:
            word = self._place()
            self._flowing = True
            return word
        return ""

    def _place(self) -> str:
        word, width = self._word, self._width
        self._word, self._width = "", 0
        if not self._flowing and self._column > 0 and self._column + width > self._columns:
            self._column = width
            return "\n" + word
        if width:
            self._column = (self._column + width - 1) % self._columns + 1
        return word
