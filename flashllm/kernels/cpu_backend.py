"""The backend "cpu": Numba kernels on a team of threads, keys and values in f16."""

from __future__ import annotations

import numpy as np

from flashllm.kernels.compiling import compile_apart
from flashllm.kernels.cpu.program import CPUProgram, Shared
from flashllm.kernels.team import Team


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

    def prepare(self) -> None:
        """Compile the kernels of all programs so far, if they are not, in a process apart."""
        compile_apart(self._shared.ops)

    def close(self) -> None:
        """Stop and join the workers."""
        self._team.close()


def open_backend(threads: int) -> CPUBackend:
    """Start a team of `threads` threads, the caller's included."""
    return CPUBackend(threads)
