"""A loaded model at the service of every thread: replies queue to the engine, in order."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

from flashllm.errors import EngineError
from flashllm.generate import engine
from flashllm.generate.events import Event
from flashllm.generate.reply import ReplyChannel
from flashllm.generate.sampling import SamplingParams
from flashllm.generate.session import Call, ChatModel, SessionState
from flashllm.model.memory import kv_bytes

Result = TypeVar("Result")
MakeEvents = Callable[[SessionState, Call], Iterator[Event]]

_open: weakref.WeakSet[Service] = weakref.WeakSet()


class Service:
    """Owns a model and the sessions with it, and hands their work to the engine's thread."""

    def __init__(self, model: ChatModel, name: str) -> None:
        self.model = model
        self.name = name
        self._replies: set[ReplyChannel] = set()
        self._states: set[SessionState] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._engine = engine.acquire()
        _open.add(self)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return self.model.decoder.resident_bytes

    @property
    def kv_bytes(self) -> int:
        """Memory of the sessions' KV caches once they are full."""
        decoder = self.model.decoder
        states = list(self._states)
        return sum(kv_bytes(decoder.config, state.n_ctx, decoder.kv_dtype) for state in states)

    @property
    def memory_bytes(self) -> int:
        """Memory of weights, buffers, and KV caches once they are full."""
        return self.weight_bytes + self.model.decoder.scratch_bytes + self.kv_bytes

    def adopt(self, state: SessionState) -> None:
        """Take charge of a session, to be freed by `drop` or `close`."""
        self._states.add(state)

    def drop(self, state: SessionState) -> None:
        """Free a session once the replies queued so far are done. Never waits.

        It counts no more in kv_bytes at once: whatever memory a later session needs, it takes on
        the engine's thread too, after this.
        """
        self._states.discard(state)
        self._engine.post(state.close)

    def start(self, state: SessionState, make: MakeEvents, params: SamplingParams) -> ReplyChannel:
        """Queue a reply: the events that `make` yields on the engine's thread.

        Raises EngineError if the model is closed.
        """
        channel = ReplyChannel()
        call = Call(params, channel.check, channel.put, time.perf_counter())

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

    def call(self, work: Callable[[], Result]) -> Result:
        """Run `work` on the engine's thread, after what is queued, and wait for its result.

        Raises EngineError if the model is closed, and what `work` raises.
        """
        with self._lock:
            self._check_open()
        return self._engine.call(work)

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
        for state in list(self._states):
            state.close()
        self._states.clear()
        self.model.close()


def open_services() -> list[Service]:
    """Every model open in this process: they share its memory."""
    return list(_open)


@atexit.register
def _cancel_all() -> None:
    """Let the engine's thread end soon, when the interpreter does."""
    for service in open_services():
        service.cancel_replies()
