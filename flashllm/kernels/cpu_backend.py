"""The backend "cpu": Numba kernels on a team of threads, keys and values in f16."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from flashllm.kernels.compiling import FEW, Compilable, compile_apart
from flashllm.kernels.cpu.program import CPUProgram, Shared
from flashllm.kernels.team import TEAMWORK, Team


class CPUBackend:
    """Owns the team; close() stops it."""

    name = "cpu"
    kv_dtype: np.dtype[np.floating] = np.dtype(np.float16)

    def __init__(self, threads: int):
        self.threads = threads
        self._team = Team(threads)
        self._shared = Shared()

    def program(self, capacity: int) -> CPUProgram:
        """An empty program for this team."""
        return CPUProgram(capacity, self._team, self._shared)

    def prepare(self, others: Collection[Compilable], *, memory_is_short: bool) -> None:
        """Compile the kernels of all programs so far, and `others`, if they are not, in a process
        apart; a few only if memory is short.
        """
        compile_apart([*TEAMWORK, *self._shared.ops, *others], 0 if memory_is_short else FEW)

    def close(self) -> None:
        """Stop and join the workers."""
        self._team.close()


def open_backend(threads: int) -> CPUBackend:
    """Start a team of `threads` threads, the caller's included."""
    return CPUBackend(threads)
