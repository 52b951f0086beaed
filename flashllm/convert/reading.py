"""Reads the rows of a foreign checkpoint's tensors, by explicit reads past the page cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm.closing import Closing
from flashllm.errors import ModelIOError
from flashllm.flash.files import ReadableFile, Scratch, open_file
from flashllm.flash.layout import ALIGNMENT, round_up
from flashllm.formats.checkpoint import Tensor


class TensorReader(Closing):
    """Open files of a checkpoint; any thread may read.

    A mapped file that shrinks kills the process; these reads raise ModelIOError.
    """

    def __init__(self, files: tuple[Path, ...]):
        """Raises ModelIOError."""
        scratch = Scratch()
        self._files: dict[Path, ReadableFile] = {}
        self._sizes: dict[Path, int] = {}
        try:
            for path in files:
                self._files[path] = open_file(path, "direct", scratch)
                self._sizes[path] = path.stat().st_size
        except OSError as error:
            self.close()
            raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
        except BaseException:
            self.close()
            raise

    def rows(self, tensor: Tensor, first: int, count: int) -> NDArray[np.uint8]:
        """Raw bytes of `count` rows from row `first`: uint8 [count, bytes of a row].

        Whole pages around them are read into memory that begins on a page, so that nothing is
        copied on the way. Raises ModelIOError.
        """
        if not 0 <= first <= first + count <= tensor.rows:
            raise IndexError(f"rows {first}..{first + count} of {tensor.name}: {tensor.rows}")
        offset, nbytes = tensor.offset + first * tensor.row_bytes, count * tensor.row_bytes
        begin = offset - offset % ALIGNMENT
        end = min(round_up(offset + nbytes, ALIGNMENT), self._sizes[tensor.file])
        memory = np.empty(end - begin + ALIGNMENT, np.uint8)
        pages = memory[-memory.ctypes.data % ALIGNMENT :][: end - begin]
        self._files[tensor.file].read_into(begin, pages)
        return pages[offset - begin :][:nbytes].reshape(count, -1)

    def close(self) -> None:
        """Close the files; reads fail afterwards."""
        for file in self._files.values():
            file.close()
