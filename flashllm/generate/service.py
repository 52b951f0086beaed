"""A loaded model at the service of every thread: replies queue to the engine, in order."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from flashllm.errors import EngineError, OutOfBudget
from flashllm.generate import engine
from flashllm.generate.events import Event
from flashllm.generate.model_memory import ModelMemory, follow_memory
from flashllm.generate.reply import ReplyChannel
from flashllm.generate.sampling import SamplingParams
from flashllm.generate.session import Call, ChatModel, SessionState

Result = TypeVar("Result")
MakeEvents = Callable[[SessionState, Call], Iterator[Event]]

_open: weakref.WeakSet[Service] = weakref.WeakSet()


class Service:
    """Owns a model and the sessions with it, and hands their work to the engine's thread."""

    def __init__(
        self,
        model: ChatModel,
        name: str,
        n_ctx: int,
        *,
        follows_memory: bool = False,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        """n_ctx: tokens of context that there is always room for; the others as ModelMemory's."""
        self.model = model
        self.name = name
        self.memory = ModelMemory(
            model.decoder,
            n_ctx,
            follows_memory,
            on_message or (lambda text: None),
            model.draft.decoder if model.draft else None,
        )
        self._replies: set[ReplyChannel] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._engine = engine.acquire()
        _open.add(self)

    def adopt(self, state: SessionState) -> None:
        """Make room for a session and take charge of it, until `drop` or `close`.

        Waits for a moment between two layers only if weights must make room. Raises OutOfBudget,
        EngineError.
        """
        if self.memory.admits(state):
            return
        try:
            self.call(lambda: self.memory.add(state), urgent=True)
        except OutOfBudget:
            # Once more in its turn, after sessions that were closed but are not free yet.
            self.call(lambda: self.memory.add(state))

    def drop(self, state: SessionState) -> None:
        """Free a session once the replies queued so far are done. Never waits."""
        self.memory.leave(state)
        self._engine.post(lambda: self.memory.free(state))

    def start(self, state: SessionState, make: MakeEvents, params: SamplingParams) -> ReplyChannel:
        """Queue a reply: the events that `make` yields on the engine's thread.

        Raises EngineError if the model is closed.
        """
        channel = ReplyChannel()

        def check() -> None:
            channel.check()
            self.between_layers()

        call = Call(params, check, channel.put, time.perf_counter())

        def work() -> None:
            error = None
            try:
                for event in make(state, call):
                    channel.put(event)
            except BaseException as raised:
                error = raised
            finally:
                self._replies.discard(channel)
                channel.end(error)

        with self._lock:
            self._check_open()
            self._replies.add(channel)
            self._engine.post(work)
        return channel

    def call(self, work: Callable[[], Result], *, urgent: bool = False) -> Result:
        """Run `work` on the engine's thread, after what is queued, and wait for its result.

        urgent: run it between two layers of the reply under way. Raises EngineError if the model is
        closed, and what `work` raises.
        """
        with self._lock:
            self._check_open()
            result = self._engine.submit(work, urgent=urgent)
        return result()

    def between_layers(self) -> None:
        """Do what cannot wait for the end of the task under way, which calls this now and then."""
        self._engine.run_urgent()
        follow_memory()

    def cancel_replies(self) -> None:
        """Cancel every reply in progress or waiting."""
        for channel in list(self._replies):
            channel.cancel()

    def close(self) -> None:
        """Cancel the replies, free sessions and model. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.cancel_replies()
        self._engine.call(self._free_all)
        _open.discard(self)
        engine.release()

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"the model {self.name} is closed; load it again")

    def _free_all(self) -> None:
        self.memory.close()
        self.model.close()


@atexit.register
def _cancel_all() -> None:
    """Let the engine's thread end soon, when the interpreter does."""
    for service in list(_open):
        service.cancel_replies()
