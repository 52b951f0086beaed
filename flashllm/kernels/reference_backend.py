"""The backend "reference": the numpy twins, keys and values in f32."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from flashllm.kernels.compiling import Compilable
from flashllm.kernels.reference import ReferenceProgram


class ReferenceBackend:
    """Nothing to own: numpy decides about threads."""

    name = "reference"
    threads = 1
    kv_dtype: np.dtype[np.floating] = np.dtype(np.float32)

    def program(self, capacity: int) -> ReferenceProgram:
        """An empty program."""
        return ReferenceProgram(capacity)

    def prepare(self, others: Collection[Compilable], *, memory_is_short: bool) -> None:
        """Nothing to compile."""

    def close(self) -> None:
        """Nothing to stop."""


def open_backend(threads: int) -> ReferenceBackend:
    """The reference; it does not use `threads`."""
    return ReferenceBackend()
