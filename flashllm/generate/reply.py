"""A reply on its way from the engine thread to whoever asked for it."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

from flashllm.errors import Cancelled
from flashllm.generate.events import Done, Event, Prefill, Reason, Stats, Token

CAPACITY = 64
"""Events kept for a slow reader; further text joins the last of them."""

_POLL_S = 0.2


class ReplyChannel:
    """The engine's end. It never waits for the reader, and never holds many events.

    cancelled is a plain flag: garbage collection may set it at any moment, when taking a lock
    could wait for ever.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self.pieces: list[str] = []
        self.done: Done | None = None
        self.error: BaseException | None = None
        self.ended = False
        self._ready = threading.Condition()
        self._events: collections.deque[Event] = collections.deque()
        self._wake: Callable[[], None] | None = None

    def cancel(self) -> None:
        """Ask the engine to stop."""
        self.cancelled = True

    def check(self) -> None:
        """Raise Cancelled if cancel() was called."""
        if self.cancelled:
            raise Cancelled("the reply was cancelled")

    def put(self, event: Event) -> None:
        """Hand over an event. Progress replaces unread progress; text joins text unread."""
        with self._ready:
            if isinstance(event, Token):
                self.pieces.append(event.text)
            elif isinstance(event, Done):
                self.done = event
            last = self._events[-1] if self._events else None
            if isinstance(event, Prefill) and isinstance(last, Prefill):
                self._events.pop()
            elif isinstance(event, Token) and isinstance(last, Token) and self._full():
                self._events.pop()
                event = Token(last.text + event.text, event.id)
            self._events.append(event)
            self._notify()

    def end(self, error: BaseException | None = None) -> None:
        """No more events; `error` is why, if the reply failed."""
        with self._ready:
            self.error = error
            self.ended = True
            self._notify()

    def get(self, wait: bool) -> Event | None:
        """The next event; None if there is none (yet, unless `wait`). Raises the reply's error."""
        with self._ready:
            while not self._events:
                if self.ended and self.error is not None:
                    raise self.error
                if self.ended or not wait:
                    return None
                self._ready.wait(_POLL_S)  # an endless wait ignores Ctrl-C on Windows
            return self._events.popleft()

    def wait(self) -> None:
        """Wait for the end, good or bad."""
        with self._ready:
            while not self.ended:
                self._ready.wait(_POLL_S)

    def on_change(self, wake: Callable[[], None] | None) -> None:
        """Call `wake` at every change from now on; None stops that."""
        with self._ready:
            self._wake = wake

    def _full(self) -> bool:
        return len(self._events) >= CAPACITY

    def _notify(self) -> None:
        self._ready.notify_all()
        if self._wake is not None:
            self._wake()


class Reply:
    """A model's reply while it is made: iterate over its events, with `for` or `async for`.

    The events are Prefill, Token and, last, Done. Whoever reads slowly gets longer pieces of text;
    generation does not wait and memory does not grow. Errors are raised to the reader, after the
    events that came before them. A reply that is dropped unread is cancelled.
    """

    def __init__(self, channel: ReplyChannel) -> None:
        self._channel = channel
        self._finalizer = weakref.finalize(self, channel.cancel)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._channel.get(wait=True)) is not None:
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the reader's loop is closed
                loop.call_soon_threadsafe(changed.set)

        self._channel.on_change(wake)
        try:
            while True:
                changed.clear()
                ended = self._channel.ended
                event = self._channel.get(wait=False)
                if event is not None:
                    yield event
                elif ended:
                    return
                else:
                    await changed.wait()
        finally:
            self._channel.on_change(None)

    def cancel(self) -> None:
        """Stop the reply within one layer, reading of the prompt included. Any thread may call.

        What came stays in the session; the last event is Done with reason "cancelled".
        """
        self._channel.cancel()

    def result(self) -> str:
        """Wait for the end, and return the whole text. Raises what stopped the reply, if so."""
        self._channel.wait()
        if self._channel.error is not None:
            raise self._channel.error
        return self.text

    @property
    def text(self) -> str:
        """The text made so far."""
        return "".join(self._channel.pieces)

    @property
    def stats(self) -> Stats | None:
        """What the reply cost; None until it is done."""
        return self._channel.done.stats if self._channel.done else None

    @property
    def reason(self) -> Reason | None:
        """Why the reply ended; None until it is done."""
        return self._channel.done.reason if self._channel.done else None
