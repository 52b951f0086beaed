"""The headers of a model that is still on the hub, in local files whose weights are holes.

A view has every file of the model, of its true size, so that whoever opens and plans checkpoints
reads it like a downloaded one; only the bytes of headers are fetched and written. Where a file
system knows no holes the view takes the room of the weights, which must be free anyway.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flashllm.errors import CorruptModel
from flashllm.formats.checkpoint import Tensor
from flashllm.formats.gguf_header import HeaderParser
from flashllm.safetensors_header import read_header

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Read = Callable[[int, int], bytes]
"""Bytes first .. end of the file on the hub."""

_BUFFER = 64 << 10
_FIRST_READ = 256 << 10
_LONGEST_READ = 8 << 20
_LARGEST_VECTOR = 1 << 20


class HeaderFile(io.RawIOBase):
    """A local file that fetches its beginning as it is read; the rest of it is a hole."""

    def __init__(self, path: Path, nbytes: int, read: Read):
        """Create `path`, `nbytes` long. Raises OSError."""
        super().__init__()
        self._size = nbytes
        self._fetch = read
        self._file = path.open("w+b")
        self._file.truncate(nbytes)
        self._have = 0
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the start of `buffer`, at most a piece of it, fetching what is not here yet."""
        view = memoryview(buffer).cast("B")
        end = min(self._position + min(len(view), _LONGEST_READ), self._size)
        if end > self._have:
            # Headers are read from front to back: each request is as long as all before it.
            ahead = min(max(self._have, _FIRST_READ), _LONGEST_READ)
            reach = min(max(end, self._have + ahead), self._size)
            self.fetch(self._have, reach)
            self._have = reach
        self._file.seek(self._position)
        count = self._file.readinto(view[: max(end - self._position, 0)])
        self._position += count
        return count

    def fetch(self, first: int, end: int) -> None:
        """Fetch bytes first .. end, unless they are here. Raises as `read` does, and OSError."""
        if end <= self._have:
            return
        data = self._fetch(first, end)
        if len(data) != end - first:
            raise CorruptModel(f"asked for {end - first} bytes of a header, {len(data)} came")
        self._file.seek(first)
        self._file.write(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def view_header(path: Path, nbytes: int, read: Read) -> None:
    """Make `path` a view of a GGUF or safetensors file of `nbytes` bytes that `read` fetches from.

    Raises CorruptModel or UnsupportedModel if the header is not sound, what `read` raises, and
    OSError.
    """
    raw = HeaderFile(path, nbytes, read)
    with io.BufferedReader(raw, _BUFFER) as file:
        if path.suffix.lower() == ".gguf":
            header = HeaderParser(path, file, nbytes).header()
            for tensor in header.tensors.values():
                if _shapes_the_model(tensor):
                    raw.fetch(tensor.offset, tensor.offset + tensor.nbytes)
        else:
            read_header(file, path, nbytes)


def _shapes_the_model(tensor: Tensor) -> bool:
    """Whether a family may read this tensor to know the config, as RoPE's factors in GGUF."""
    small = len(tensor.shape) == 1 and tensor.nbytes <= _LARGEST_VECTOR
    return small and not tensor.name.startswith("blk.")
