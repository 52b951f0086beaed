"""Tokens that are found in a text before it is tokenised: control tokens, and words kept whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

from flashllm.errors import CorruptModel

MAX_CONTENT = 1 << 12
"""Characters of a token."""

_WHITE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's White_Space; str.strip() takes some control characters for white space too."""

_SURROGATE = re.compile("[\ud800-\udfff]")

_FLAGS = ("special", "lstrip", "rstrip", "single_word")


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is matched literally.

    special: it controls the model, and no user's text may yield it. lstrip, rstrip: white space
    before or after it belongs to it. single_word: it counts only where no letter, digit or
    underscore touches it. The terms are those of Hugging Face's tokenizers.
    """

    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False

    def to_json(self) -> dict[str, Any]:
        """As stored: id, content, and the flags that are set."""
        flags = {name: True for name in _FLAGS if getattr(self, name)}
        return {"id": self.id, "content": self.content, **flags}

    @classmethod
    def from_json(cls, data: Any, where: str) -> AddedToken:
        """Read what is stored. Raises CorruptModel, naming `where`."""
        if not isinstance(data, dict):
            raise CorruptModel(f"{where}: an added token is not an object")
        token, content = data.get("id"), data.get("content")
        flags = {name: data.get(name, False) for name in _FLAGS}
        if type(token) is not int or token < 0 or not isinstance(content, str):
            raise CorruptModel(f"{where}: an added token lacks a proper id and content")
        if not 0 < len(content) <= MAX_CONTENT or _SURROGATE.search(content):
            raise CorruptModel(f"{where}: added token {token} has an impossible text")
        if any(type(flag) is not bool for flag in flags.values()):
            raise CorruptModel(f"{where}: a flag of added token {token} is not true or false")
        return cls(token, content, **flags)


class AddedTokens:
    """Finds added tokens in a text: the leftmost first, of those that begin there the longest.

    The rules are those of Hugging Face's tokenizers (tokenizers/src/tokenizer/added_vocabulary.rs).
    """

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._by_content = {token.content: token for token in tokens}
        longest_first = sorted(self._by_content, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The tokens in `text` and the text between them; no piece of text is empty."""
        start = 0
        for found in self._pattern.finditer(text):
            token = self._by_content[found[0]]
            left, right = found.span()
            if left < start or (token.single_word and _touches_word(text, left, right)):
                continue
            if token.lstrip:
                left = start + len(text[start:left].rstrip(_WHITE))
            if left > start:
                yield text[start:left]
            yield token
            start = right
            if token.rstrip:
                start = len(text) - len(text[right:].lstrip(_WHITE))
        if start < len(text):
            yield text[start:]


def _touches_word(text: str, left: int, right: int) -> bool:
    around = text[max(left - 1, 0) : left] + text[right : right + 1]
    return re.search(r"\w", around) is not None
