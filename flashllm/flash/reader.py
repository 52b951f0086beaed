"""Reads units from a flash model into the caller's buffers, each checked against its checksum."""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable, Sequence

import numpy as np

from flashllm.closing import Closing
from flashllm.errors import CorruptModel, EngineError, InvalidInput
from flashllm.flash.bitmaps import Check, is_sound
from flashllm.flash.files import Bytes, ReadableFile, Scratch, open_file
from flashllm.flash.format import FlashModel, Group

IO_MODES = ("auto", "direct", "pread", "mmap")
INLINE_BYTES = 128 << 10  # below this, handing work to another thread costs more than it saves

Extent = tuple[str, int, int]
"""Name of a file of the model, byte offset, length."""
Buffer = Bytes | memoryview


class UnitReader(Closing):
    """Explicit reads from a model's files by a few threads; safe to call from any thread.

    io "direct" bypasses the page cache; "pread" goes through it; "mmap" copies out of mapped files,
    see MappedFile for what that risks; "auto" is direct, except that a file found in the page cache
    is read from there while it lasts. Where a file system cannot do what is asked, or for "auto"
    cannot read direct, "pread" takes its place, and `fallback` says so.
    """

    def __init__(
        self, model: FlashModel, io: str = "auto", threads: int = 8, check: Check = is_sound
    ):
        """check: of units of codec `bitmap`. Raises InvalidInput for an unknown io mode."""
        if io not in IO_MODES:
            raise InvalidInput(f"io {io!r} is unknown; use one of {', '.join(IO_MODES)}")
        self.model = model
        self.check = check
        self._mode = io
        self._threads = threads
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "flash-read")
        self._files: dict[str, ReadableFile] = {}
        self._scratch = Scratch()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def io(self) -> str:
        """How files are really read, known once one is open: "direct", "pread" or "mmap".

        Of "auto" it is "pread" only while all of them are read from the page cache.
        """
        if self.fallback:
            return "pread"
        if self._mode != "auto":
            return self._mode
        return (
            "pread" if {file.io for file in list(self._files.values())} == {"pread"} else "direct"
        )

    @property
    def fallback(self) -> str | None:
        """Why files are not read as asked, in a sentence, known once one is open; else None."""
        for file in list(self._files.values()):
            if self._mode not in file.serves:
                wanted = "direct" if self._mode == "auto" else self._mode
                return (
                    f"{file.path}: this file system cannot read in mode {wanted!r}; "
                    f"reading with {file.io!r} instead."
                )
        return None

    def read(self, extents: Sequence[Extent], out: Sequence[Buffer]) -> None:
        """Fill out[i] (uint8, at least `length` long) with extent i; bytes are not checked.

        Returns when every read is complete. Raises ModelIOError(path, offset).
        """
        self._check(out, [length for _, _, length in extents])
        files = [self._file(name) for name, _, _ in extents]

        def fetch(i: int) -> None:
            _, offset, length = extents[i]
            files[i].read_into(offset, np.asarray(out[i])[:length])

        self._spread(fetch, [length for _, _, length in extents])

    def read_units(self, group: Group, ids: Sequence[int], out: Sequence[Buffer]) -> None:
        """Fill out[i] (uint8, at least lengths[ids[i]] long) with unit ids[i] of `group`.

        Returns when every read is complete, also when it raises: CorruptModel for a unit that
        fails its checksum, ModelIOError(path, offset), InvalidInput for an id out of range.
        """
        if len(ids) and not 0 <= min(ids) <= max(ids) < group.units:
            raise InvalidInput(f"group {group.name!r} has units 0 to {group.units - 1}, not {ids}")
        lengths = [int(group.lengths[unit]) for unit in ids]
        self._check(out, lengths)
        file = self._file(group.file)

        def fetch(i: int) -> None:
            unit = ids[i]
            data = np.asarray(out[i])[: lengths[i]]
            file.read_into(group.file_offset + int(group.offsets[unit]), data)
            if not group.is_whole(unit, data.data, self.check):
                raise _corrupt(file, group, unit)

        self._spread(fetch, lengths)

    def read_run(self, group: Group, first: int, count: int, out: Bytes) -> None:
        """Fill `out` with `count` units from `first` as the file has them, by one read, here.

        out: uint8 [at least offsets[first + count] - offsets[first]]; unit i of the group begins at
        out[offsets[i] - offsets[first]], padding between units is read too. Memory that begins on a
        page is read into without a copy.
        Raises CorruptModel for a unit that fails its checksum, ModelIOError(path, offset),
        InvalidInput for units out of range and a buffer too short.
        """
        if count < 1 or not 0 <= first <= group.units - count:
            raise InvalidInput(
                f"group {group.name!r} has {group.units} units, not {count} from {first}"
            )
        begin, *ends = group.offsets[first : first + count + 1].tolist()
        nbytes = ends[-1] - begin
        self._check([out], [nbytes])
        file = self._file(group.file)
        file.read_into(group.file_offset + begin, out[:nbytes])
        data, at = out.data, 0
        for i in range(count):
            if not group.is_whole(first + i, data[at:], self.check):
                raise _corrupt(file, group, first + i)
            at = ends[i] - begin

    def read_scattered(self, group: Group, units: Sequence[int], out: Sequence[memoryview]) -> None:
        """Fill out[i] with unit units[i] and the padding behind it, by one read if possible, here.

        units: in ascending order; what lies between them may be read as well, and is dropped.
        out[i]: offsets[unit + 1] - offsets[unit] writable bytes. Memory that begins on a page and
        is whole pages is read into without a copy.
        Raises CorruptModel for a unit that fails its checksum, ModelIOError(path, offset),
        InvalidInput for units out of range or order and buffers of other sizes.
        """
        if len(out) != len(units):
            raise InvalidInput(f"{len(out)} buffers for {len(units)} units")
        if not len(units):
            return
        places: list[int] = []
        before, count = -1, group.units
        for unit, buffer in zip(units, out, strict=True):
            if not before < unit < count:
                raise InvalidInput(
                    f"group {group.name!r} has units 0 to {count - 1}, wanted in ascending "
                    f"order, not {unit} after {before}"
                )
            begin, end = group.offsets.item(unit), group.offsets.item(unit + 1)
            if buffer.readonly or not len(buffer) == buffer.nbytes == end - begin:
                raise InvalidInput(f"a buffer for unit {unit} is not {end - begin} writable bytes")
            places.append(group.file_offset + begin)
            before = unit
        file = self._file(group.file)
        file.read_into_many(places, out)
        for unit, buffer in zip(units, out, strict=True):
            if not group.is_whole(unit, buffer, self.check):
                raise _corrupt(file, group, unit)

    def direct_file(self, group: Group) -> int | None:
        """The descriptor that reads the group's file past the page cache, if that is how it is
        read now; it is the reader's, and good until that closes. Raises as a read if it cannot be
        opened.
        """
        return self._file(group.file).direct_descriptor

    def close(self) -> None:
        """Wait for reads of this reader's threads and close the files; reads fail afterwards."""
        self._pool.shutdown()
        with self._lock:
            self._closed = True
            for file in self._files.values():
                file.close()
            self._files.clear()

    def _spread(self, fetch: Callable[[int], None], lengths: Sequence[int]) -> None:
        """Run fetch(i) for every i on the threads; wait for all, then raise the first error."""
        workers = min(self._threads, len(lengths))
        if workers < 2 or sum(lengths) <= INLINE_BYTES:
            for i in range(len(lengths)):
                fetch(i)
            return

        def share(first: int) -> None:
            for i in range(first, len(lengths), workers):
                fetch(i)

        futures = [self._pool.submit(share, first) for first in range(workers)]
        concurrent.futures.wait(futures)
        for future in futures:
            future.result()

    def _file(self, name: str) -> ReadableFile:
        if file := self._files.get(
            name
        ):  # without the lock, for which many small reads would queue
            return file
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.model.path}: its reader is closed; open the model again")
            if name not in self._files:
                if name not in self.model.manifest.files:
                    raise InvalidInput(f"{self.model.path}: has no file {name!r}")
                self._files[name] = open_file(self.model.path / name, self._mode, self._scratch)
            return self._files[name]

    def _check(self, out: Sequence[Buffer], lengths: Sequence[int]) -> None:
        if len(out) != len(lengths):
            raise InvalidInput(f"{len(out)} buffers for {len(lengths)} reads")
        for buffer, length in zip(out, lengths, strict=True):
            array = np.asarray(buffer)
            flat = array.dtype == np.uint8 and array.ndim == 1 and array.flags.c_contiguous
            if not flat or not array.flags.writeable or len(array) < length:
                raise InvalidInput(f"a buffer is not {length} writable contiguous bytes")


def _corrupt(file: ReadableFile, group: Group, unit: int) -> CorruptModel:
    return CorruptModel(
        f"{file.path}: unit {unit} of {group.name!r} fails its checksum, or its bitmaps do not fit "
        "what it holds; pull or convert the model again"
    )
