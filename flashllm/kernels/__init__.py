"""Arithmetic. `load` is the only place where a backend is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Protocol

import numpy as np

from flashllm.errors import InvalidInput
from flashllm.kernels.compiling import Compilable
from flashllm.kernels.program import Program

BACKENDS = ("cpu", "reference")


class Backend(Protocol):
    """What a model needs of the machine that computes it."""

    name: str
    threads: int
    kv_dtype: np.dtype[np.floating]

    def program(self, capacity: int) -> Program:
        """An empty program whose buffers hold up to `capacity` rows."""

    def prepare(self, others: Collection[Compilable], *, memory_is_short: bool) -> None:
        """Make what programs recorded so far need, and `others`, where making it takes much memory
        for a while.

        Before a model's weights are read there is room for that. Without it the first run makes
        what is missing, and so it may a few things unless memory_is_short.
        """

    def close(self) -> None:
        """Stop its threads; programs of it can no longer run."""


def load(name: str, threads: int = 1) -> Backend:
    """The backend "cpu" (Numba kernels on a team of threads) or "reference" (numpy, float32).

    Raises InvalidInput for an unknown name or a thread count below 1.
    """
    if name not in BACKENDS:
        raise InvalidInput(f"backend {name!r} does not exist; choose one of {', '.join(BACKENDS)}")
    if threads < 1:
        raise InvalidInput(f"{threads} threads: at least 1 is needed")
    # Imported on choice: the reference compiles nothing, nor starts threads.
    module = importlib.import_module(f"flashllm.kernels.{name}_backend")
    backend: Backend = module.open_backend(threads)
    return backend
