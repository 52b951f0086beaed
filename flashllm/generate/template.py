"""A model's chat template: messages in, the prompt's text out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from jinja2 import TemplateError

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError
from flashllm.generate import jinja_env
from flashllm.generate.template_process import ChildRenderer

Role = Literal["system", "user", "assistant", "tool"]

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The plain ChatML template, for models and tests that have no other."""

VETTED = frozenset(
    {
        # SmolLM2-Instruct, as in its GGUF files
        "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
        # ChatML, as above
        hashlib.sha256(CHATML.encode()).hexdigest(),
    }
)
"""sha256 of the templates known to be harmless: they render in this process, all others apart."""

MAX_TEMPLATE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise InvalidInput(f"role {self.role!r} is not one of {', '.join(get_args(Role))}")
        if not isinstance(self.content, str):
            raise InvalidInput(f"a message's content is text, not {type(self.content).__name__}")


class ChatTemplate:
    """A Jinja chat template. Vetted ones render here; any other in a child process with limits.

    bos_token, eos_token: the text of those tokens, which templates may write.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self._child = None if digest in VETTED else ChildRenderer()

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of the conversation; with the opening of a reply if `add_generation_prompt`.

        A template that refuses a system message, as those of models trained without any do, gets
        it as the beginning of the first user's message instead.

        Raises InvalidInput if the template refuses the messages (their order, say); CorruptModel
        if it is broken, takes over 2 s or over 256 MiB.
        """
        try:
            return self._render(messages, add_generation_prompt)
        except InvalidInput:
            folded = _without_system(messages)
            if folded is None:
                raise
            with contextlib.suppress(InvalidInput):  # the first refusal tells more
                return self._render(folded, add_generation_prompt)
            raise

    def close(self) -> None:
        """End the child process, if this template needed one."""
        if self._child is not None:
            self._child.close()

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        variables: dict[str, Any] = {
            "messages": [dataclasses.asdict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._tokens,
        }
        if self._child is not None:
            return self._child.render(self.source, variables)
        try:
            return jinja_env.render(self.source, variables)
        except TemplateError as error:
            raise CorruptModel(f"the model's chat template does not work: {error}") from error


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """`messages` whose system message begins the user's first; None if there are no such two."""
    if len(messages) < 2 or (messages[0].role, messages[1].role) != ("system", "user"):
        return None
    system, user, *rest = messages
    return [Message("user", f"{system.content}\n\n{user.content}"), *rest]


def read_template(path: Path) -> str | None:
    """The source of the chat template of the model at `path`; None if it has none.

    Raises ModelIOError or CorruptModel, naming the file.
    """
    file = path / "chat_template.jinja"
    try:
        if file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CorruptModel(f"{file}: larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelIOError(f"{file}: {error.strerror}", file) from error
    except UnicodeDecodeError as error:
        raise CorruptModel(f"{file}: not UTF-8: {error}") from None
