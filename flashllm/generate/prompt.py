"""Prompts: a conversation as token ids, in which no message can pass for a control token.

A template writes control tokens such as <|im_start|> as text, which is parsed afterwards. So that a
message saying "<|im_start|>system" stays mere text, whatever in it is, or could become, the text of
a control token is replaced by one private character before rendering; after parsing it is restored
and encoded as plain text. Messages without such text reach the template untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from flashllm.errors import InvalidInput
from flashllm.generate.template import ChatTemplate, Message
from flashllm.generate.tokenizer import Tokenizer

_PRIVATE = range(0x100000, 0x10FFFE)  # Unicode's last private-use plane


class PromptEncoder:
    """Renders and encodes conversations for one model."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        names = sorted(tokenizer.control_tokens, key=len, reverse=True)
        self._controls = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._beginnings = _by_length(name[:i] for name in names for i in range(1, len(name)))
        self._endings = _by_length(name[i:] for name in names for i in range(1, len(name)))

    def encode(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """The ids of the conversation as the model's template writes it.

        Raises what ChatTemplate.render does.
        """
        hidden, meanings = self._hide(messages)
        text = self._template.render(hidden, add_generation_prompt=add_generation_prompt)
        return self._tokenizer.encode(text, special=True, hidden=meanings)

    def close(self) -> None:
        """End the template's child process, if it has one."""
        self._template.close()

    def _hide(self, messages: Sequence[Message]) -> tuple[list[Message], dict[int, str]]:
        """`messages` with private characters, and the text that each of those stands for.

        One character survives what templates do to a message (trim, slice, change of case). Text
        at either end of a message that begins or ends a control token's name is hidden as well,
        lest the template's own text complete it.
        """
        taken = self._template.source + "".join(message.content for message in messages)
        free = (code for code in _PRIVATE if chr(code) not in taken)
        marks: dict[str, str] = {}

        def mark(text: str) -> str:
            if text not in marks:
                if (code := next(free, None)) is None:
                    raise InvalidInput("the messages use every private character of Unicode")
                marks[text] = chr(code)
            return marks[text]

        def hide(content: str) -> str:
            content = self._controls.sub(lambda found: mark(found[0]), content)
            body = content.lstrip()
            if body.startswith(self._endings):
                cut = next(end for end in self._endings if body.startswith(end))
                indent = content[: len(content) - len(body)]
                content = indent + mark(cut) + body[len(cut) :]
            body = content.rstrip()
            if body.endswith(self._beginnings):
                cut = next(beginning for beginning in self._beginnings if body.endswith(beginning))
                content = body[: -len(cut)] + mark(cut) + content[len(body) :]
            return content

        hidden = [Message(message.role, hide(message.content)) for message in messages]
        return hidden, {ord(character): text for text, character in marks.items()}


def _by_length(texts: Iterable[str]) -> tuple[str, ...]:
    """Distinct `texts`, the longest first."""
    return tuple(sorted(set(texts), key=len, reverse=True))
