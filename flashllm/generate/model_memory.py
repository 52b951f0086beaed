"""What an open model holds of memory: its weights shrink and grow beside sessions and other models.

All of it runs on the engine's thread, at moments when no layer is in use, but where said otherwise.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator

from flashllm.errors import FlashError, OutOfBudget
from flashllm.generate.loop import Decoder
from flashllm.generate.pressure import MemoryWatch
from flashllm.generate.session import SessionState
from flashllm.model.memory import FIXED_BYTES, kv_bytes
from flashllm.sizes import format_size

Progress = Callable[[int, int], None]

watch = MemoryWatch()
"""Of this process: what the system leaves is shared by all its models."""

_open: weakref.WeakSet[ModelMemory] = weakref.WeakSet()


class ModelMemory:
    """The memory of one model, within the budget of the whole process.

    There is always room for one session of n_ctx tokens. draft: a model that belongs to it, which
    neither shrinks nor grows. follows: whether the budget is to follow
    what other programs leave; on_message then says when it changes.
    """

    def __init__(
        self,
        decoder: Decoder,
        n_ctx: int,
        follows: bool,
        on_message: Callable[[str], None],
        draft: Decoder | None = None,
    ) -> None:
        self.follows = follows
        self._decoder = decoder
        self._draft = draft
        self._on_message = on_message
        self._reserved = self._kv_bytes(n_ctx)
        self._states: set[SessionState] = set()
        self._leaving: set[SessionState] = set()
        self._lent = 0
        self._lock = threading.Lock()
        # What the weights leave room for: the budget, bytes besides, those of other models.
        self._fitted = (decoder.budget, self._reserved, self._taken)
        _open.add(self)

    @property
    def kv_bytes(self) -> int:
        """Memory of the sessions' KV caches once they are full. Any thread may ask."""
        return sum(self._kv_bytes(state.n_ctx) for state in list(self._states))

    @property
    def nbytes(self) -> int:
        """Memory of weights and buffers, and KV caches once they are full. Any thread may ask.

        What closed sessions took counts until the weights grow into it.
        """
        beside = max(self._beside, self._fitted[1]) + self._draft_bytes
        return self._decoder.resident_bytes + self._decoder.scratch_bytes + beside

    @property
    def _beside(self) -> int:
        """Bytes besides weights and buffers."""
        leaving = sum(self._kv_bytes(state.n_ctx) for state in list(self._leaving))
        return max(self._reserved, self.kv_bytes + leaving + self._lent)

    def resize(self, budget: int | None, follows: bool, on_progress: Progress) -> None:
        """Use so much from now on. Raises OutOfBudget, and nothing has changed; CorruptModel,
        ModelIOError.
        """
        self._fit(budget, on_progress)
        self.follows = follows
        watch.changed()

    def admits(self, state: SessionState) -> bool:
        """Count a session if there is room for it as things are. Any thread may ask."""
        with self._lock:
            self._states.add(state)
            if self._decoder.budget is None or self._beside <= self._fitted[1]:
                return True
            self._states.discard(state)
            return False

    def add(self, state: SessionState) -> None:
        """Make room for a session. Raises OutOfBudget, and it counts no more."""
        self._states.add(state)
        try:
            self._make_room()
        except BaseException:
            self._states.discard(state)
            raise

    def leave(self, state: SessionState) -> None:
        """A session is closed, though its memory is not free yet. Any thread may say so."""
        self._leaving.add(state)
        self._states.discard(state)

    def free(self, state: SessionState) -> None:
        """Free a session."""
        state.close()
        self._states.discard(state)
        self._leaving.discard(state)

    @contextlib.contextmanager
    def lent(self, nbytes: int) -> Iterator[None]:
        """Room for something else meanwhile. It remains so until room is next asked for.

        Raises OutOfBudget.
        """
        self._lent += nbytes
        try:
            self._make_room()
            yield
        finally:
            self._lent -= nbytes

    def close(self) -> None:
        """Free all sessions."""
        for state in [*self._states, *self._leaving]:
            self.free(state)
        _open.discard(self)

    def give_back(self, allowed: int) -> None:
        """Shrink as far as the process must to use no more than `allowed` bytes, if it can."""
        least = self._decoder.least_budget(kv=self._beside, taken=self._taken)
        budget = max(allowed, least)
        if budget < committed():
            self._fit(budget)
            self._say("memory is short")

    def grow(self, budget: int) -> None:
        """Let the process use `budget` bytes."""
        self._fit(budget)
        self._say("memory is free again")

    @property
    def streams(self) -> bool:
        """Whether more memory would help."""
        return self._decoder.streamed_bytes > 0

    @property
    def _taken(self) -> int:
        """What other models hold, the draft included."""
        return self._draft_bytes + sum(other.nbytes for other in list(_open) if other is not self)

    @property
    def _draft_bytes(self) -> int:
        """Memory of the draft's weights and buffers."""
        return self._draft.resident_bytes + self._draft.scratch_bytes if self._draft else 0

    def _make_room(self) -> None:
        """Fit what is counted now in the budget; in one that follows the system's, as it is now."""
        budget = self._decoder.budget
        try:
            self._fit(budget)
        except OutOfBudget:
            if not self.follows:
                raise
            self._fit(watch.allowed())

    def _fit(self, budget: int | None, on_progress: Progress = lambda done, total: None) -> None:
        with self._lock:
            before = self._fitted
            asked = self._fitted = (budget, self._beside, self._taken)
        if asked == before:
            return
        try:
            self._decoder.fit(budget, kv=asked[1], taken=asked[2], on_progress=on_progress)
        except BaseException:
            self._fitted = before
            raise

    def _kv_bytes(self, n_ctx: int) -> int:
        own = kv_bytes(self._decoder.config, n_ctx, self._decoder.kv_dtype)
        return own + (draft_kv_bytes(self._draft, n_ctx) if self._draft else 0)

    def _say(self, why: str) -> None:
        watch.changed()
        if self._decoder.budget is not None:
            self._on_message(f"{why}: using {format_size(self._decoder.budget)} now.")


def draft_kv_bytes(draft: Decoder, n_ctx: int) -> int:
    """Memory of a draft's keys and values in a session of n_ctx tokens."""
    return kv_bytes(draft.config, min(n_ctx, draft.config.context_length), draft.kv_dtype)


def committed() -> int:
    """Bytes that this process takes once all its KV caches are full."""
    return FIXED_BYTES + held()


def held() -> int:
    """Bytes that the open models hold, once their KV caches are full. Any thread may ask."""
    return sum(memory.nbytes for memory in list(_open))


def follow_memory() -> None:
    """Shrink or grow the models that follow what the system leaves, if it is time to look.

    Never raises: a reply goes on with what there is.
    """
    models = sorted(
        (memory for memory in list(_open) if memory.follows),
        key=lambda memory: memory.nbytes,
        reverse=True,
    )
    if not models or not watch.due():
        return
    now = committed()
    if (budget := watch.next_budget(now)) is None:
        return
    with contextlib.suppress(FlashError):
        for memory in models:
            if budget < now:
                memory.give_back(budget)
            elif memory.streams:
                memory.grow(budget)
                break
