"""A conversation as callers hold it: what they say queues to the engine's thread."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path
from typing import Unpack

from flashllm.generate import session_file
from flashllm.generate.reply import Reply, ReplyChannel
from flashllm.generate.sampling import SamplingOptions, SamplingParams
from flashllm.generate.service import MakeEvents, Service
from flashllm.generate.session import SessionState
from flashllm.generate.template import Message


class Session:
    """A conversation with a model, with its own KV cache. Any thread may call.

    A prompt longer than the context is refused (ContextFull) and changes nothing; a reply that
    fills the context ends there. What a cancelled reply said stays in the conversation.

    sampling: settings for replies, where a call gives no others.
    """

    def __init__(self, service: Service, state: SessionState, sampling: SamplingParams) -> None:
        self.sampling = sampling
        self._service = service
        self._state = state
        self._lock = threading.Lock()
        self._last: ReplyChannel | None = None
        # A session that nobody holds any more is freed, after the replies it still owes.
        self._finalizer = weakref.finalize(self, service.drop, state)

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said, the system prompt included. A reply is added when it is done."""
        return self._state.messages

    @property
    def system(self) -> str | None:
        """The system prompt; assign to replace it, None to remove it."""
        return next((m.content for m in self.messages if m.role == "system"), None)

    @system.setter
    def system(self, text: str | None) -> None:
        self._settled().set_system(text)

    @property
    def n_ctx(self) -> int:
        """Tokens of context."""
        return self._state.n_ctx

    def stream(self, text: str, **sampling: Unpack[SamplingOptions]) -> Reply:
        """Say `text`; the model's reply. Returns at once.

        Errors are raised to whoever reads the reply: ContextFull, EngineError, InvalidInput (no
        chat template, or it refuses the messages), CorruptModel (a broken template).
        """
        return self._start(lambda state, call: state.ask(text, call), sampling)

    def ask(self, text: str, **sampling: Unpack[SamplingOptions]) -> str:
        """Say `text` and wait for the whole reply. Raises as reading the reply does."""
        return self.stream(text, **sampling).result()

    def retry(self, **sampling: Unpack[SamplingOptions]) -> Reply:
        """Drop the last reply and make another. Reading it raises InvalidInput if there is none."""
        return self._start(lambda state, call: state.retry(call), sampling)

    def undo(self) -> str:
        """Take back the last message and its reply; the message. InvalidInput if there is none."""
        return self._settled().undo()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self._settled().reset()

    def save(self, path: Path | str) -> None:
        """Write the conversation and its KV cache to `path`, whole or not at all.

        Raises ModelIOError, DiskFull.
        """
        self._service.call(lambda: session_file.save(self._state, Path(path)))

    def close(self) -> None:
        """Cancel the last reply if it goes on, and free the KV cache."""
        if self._last is not None:
            self._last.cancel()
        self._finalizer()

    def _start(self, make: MakeEvents, sampling: SamplingOptions) -> Reply:
        params = self.sampling.with_options(sampling)
        with self._lock:
            self._last = self._service.start(self._state, make, params)
            return Reply(self._last)

    def _settled(self) -> SessionState:
        """The state, once the replies under way are done."""
        if self._last is not None:
            self._last.wait()
        return self._state
