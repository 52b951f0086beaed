"""Reads the rows of a foreign checkpoint's tensors, by explicit reads past the page cache."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flashllm.flash.files import ReadableFile, Scratch, open_file
from flashllm.formats.checkpoint import Tensor


class TensorReader:
    """Open files of a checkpoint; any thread may read.

    A mapped file that shrinks kills the process; these reads raise ModelIOError.
    """

    def __init__(self, files: tuple[Path, ...]):
        """Raises ModelIOError."""
        scratch = Scratch()
        self._files: dict[Path, ReadableFile] = {}
        try:
            for path in files:
                self._files[path] = open_file(path, "direct", scratch)
        except BaseException:
            self.close()
            raise

    def rows(self, tensor: Tensor, first: int, count: int) -> NDArray[np.uint8]:
        """Raw bytes of `count` rows from row `first`: uint8 [count, bytes of a row]."""
        if not 0 <= first <= first + count <= tensor.rows:
            raise IndexError(f"rows {first}..{first + count} of {tensor.name}: {tensor.rows}")
        out = np.empty((count, tensor.row_bytes), np.uint8)
        offset = tensor.offset + first * tensor.row_bytes
        self._files[tensor.file].read_into(offset, out.reshape(-1))
        return out

    def close(self) -> None:
        """Close the files; reads fail afterwards."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()
