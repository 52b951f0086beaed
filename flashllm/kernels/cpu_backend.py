"""The backend "cpu": Numba kernels on a team of threads, keys and values in f16."""

from __future__ import annotations

import numpy as np

from flashllm.kernels.cpu.program import CPUProgram, SharedScratch
from flashllm.kernels.team import Team


class CPUBackend:
    """Owns the team; close() stops it."""

    name = "cpu"
    kv_dtype: np.dtype[np.floating] = np.dtype(np.float16)

    def __init__(self, threads: int):
        self.threads = threads
        self._team = Team(threads)
        self._scratch: SharedScratch = {}

    def program(self, capacity: int) -> CPUProgram:
        """An empty program for this team."""
        return CPUProgram(capacity, self._team, self._scratch)

    def close(self) -> None:
        """Stop and join the workers."""
        self._team.close()


def open_backend(threads: int) -> CPUBackend:
    """Start a team of `threads` threads, the caller's included."""
    return CPUBackend(threads)
