"""The chat's own language: slash commands, and messages of several lines between triple quotes."""

from __future__ import annotations

import dataclasses

from flashllm.errors import InvalidInput

QUOTES = '"""'

# name -> (argument, what it does). An argument in brackets may be left out.
COMMANDS = {
    "help": ("", "show this list"),
    "reset": ("", "forget the conversation, keep the settings"),
    "save": ("FILE", "save the conversation to FILE"),
    "load": ("FILE", "go on with the conversation in FILE"),
    "system": ("[TEXT]", "show the system prompt, or set it and start over"),
    "set": ("[NAME VALUE]", "show the settings, or change one: /set temp 0.7"),
    "show": ("", "describe the model"),
    "stats": ("", "show what the conversation has cost so far"),
    "mem": ("[SIZE]", "show the memory in use, or use SIZE from now on: /mem 2GB, /mem auto"),
    "retry": ("", "answer the last message again"),
    "read": ("FILE", "put the text of FILE in front of your next message"),
    "bye": ("", "leave (so does Ctrl-D)"),
}
_ALIASES = {"?": "help", "clear": "reset", "exit": "bye", "quit": "bye"}


@dataclasses.dataclass(frozen=True)
class Command:
    """A slash command the user gave."""

    name: str
    argument: str = ""


@dataclasses.dataclass(frozen=True)
class Message:
    """Something to say to the model."""

    text: str


class Composer:
    """Turns typed lines into commands and messages."""

    def __init__(self) -> None:
        self._lines: list[str] | None = None

    @property
    def open(self) -> bool:
        """Whether a message between triple quotes still waits for its end."""
        return self._lines is not None

    def feed(self, line: str) -> Command | Message | None:
        """What `line` completes: None if nothing (an empty line, or the message goes on).

        Raises InvalidInput on an unknown command or a missing argument.
        """
        if self._lines is not None:
            return self._continue(line)
        text = line.strip()
        if text.startswith(QUOTES):
            self._lines = []
            return self._continue(text.removeprefix(QUOTES))
        if text.startswith("/"):
            return parse_command(text)
        return Message(text) if text else None

    def abandon(self) -> None:
        """Drop an unfinished message."""
        self._lines = None

    def _continue(self, line: str) -> Message | None:
        lines = self._lines if self._lines is not None else []
        ended = line.rstrip().endswith(QUOTES)
        lines.append(line.rstrip().removesuffix(QUOTES) if ended else line)
        if not ended:
            return None
        self._lines = None
        text = "\n".join(lines).strip("\n")
        return Message(text) if text.strip() else None


def parse_command(text: str) -> Command:
    """The command in `text`, which starts with a slash. Raises InvalidInput."""
    word, _, argument = text[1:].partition(" ")
    name = _ALIASES.get(word.lower(), word.lower())
    argument = argument.strip()
    if name not in COMMANDS:
        raise InvalidInput(f"there is no command /{word}; /help lists them")
    wanted = COMMANDS[name][0]
    if wanted and not wanted.startswith("[") and not argument:
        raise InvalidInput(f"/{name} needs an argument: /{name} {wanted}")
    if argument and not wanted:
        raise InvalidInput(f"/{name} takes no argument")
    return Command(name, argument)


def help_text() -> str:
    """Every command, one a line."""
    rows = [(f"/{name} {argument}".strip(), what) for name, (argument, what) in COMMANDS.items()]
    rows.append((QUOTES, f"begin a message of several lines; {QUOTES} ends it"))
    rows.append(("Ctrl-C", "stop the reply and keep what came"))
    width = max(len(left) for left, _ in rows)
    return "\n".join(f"{left:<{width}}  {what}" for left, what in rows)
