"""Units that stay in memory: the first ones of every span, read once and verified."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.policy import Residency, Span
from flashllm.flash.format import FlashModel
from flashllm.flash.prefetch import Pending, Prefetcher
from flashllm.kernels.memory import OVERREAD, huge_buffer

Progress = Callable[[int, int], None]
Place = Callable[[str, int, NDArray[np.int64]], None]
"""Told the addresses of a group's units from one on."""

CHUNK_BYTES = 64 << 20
"""The most that a buffer is made for: enough for huge pages to pay, little enough that shrinking,
which copies buffer by buffer, takes little memory besides."""


@dataclasses.dataclass
class _Chunk:
    """A buffer, the spans that share it, and how many units of each it holds."""

    spans: list[Span]
    counts: list[int]
    buffer: NDArray[np.uint8]


class PinnedUnits:
    """The pinned units of a model. `hold` makes it so that exactly those of a residency are there.

    What a change keeps is copied in memory, not read again; a chunk at a time, those that shrink
    first, so that it takes no more memory than before and after but for one chunk.
    """

    def __init__(self, model: FlashModel, residency: Residency, place: Place):
        self._model = model
        self._place = place
        self._chunks: list[_Chunk] = []
        size = CHUNK_BYTES
        for span, _ in residency.kept():
            for piece in _pieces(span):
                size += piece.nbytes
                if size > CHUNK_BYTES:
                    self._chunks.append(_Chunk([], [], huge_buffer(0)))
                    size = piece.nbytes
                self._chunks[-1].spans.append(piece)
                self._chunks[-1].counts.append(0)

    def hold(self, residency: Residency, prefetcher: Prefetcher, on_progress: Progress) -> None:
        """Read what is to stay and is not there, let go what is not to.

        on_progress(bytes done, bytes in all). If it raises, what was there remains, but for whole
        chunks. Raises CorruptModel, ModelIOError.
        """
        kept = (
            min(max(0, count - (piece.first - span.first)), piece.units)
            for span, count in residency.kept()
            for piece in _pieces(span)
        )
        changes = [(chunk, [next(kept) for _ in chunk.spans]) for chunk in self._chunks]
        changes = [change for change in changes if change[0].counts != change[1]]
        changes.sort(key=lambda change: _nbytes(change[0].spans, change[1]) - len(change[0].buffer))
        total = sum(_missing(chunk, counts) for chunk, counts in changes)
        done = 0

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            on_progress(done, total)

        for chunk, counts in changes:
            self._refill(chunk, counts, prefetcher, count)

    def close(self) -> None:
        """Give the memory back."""
        self._chunks.clear()

    def _refill(
        self,
        chunk: _Chunk,
        counts: list[int],
        prefetcher: Prefetcher,
        on_read: Callable[[int], None],
    ) -> None:
        """Give the chunk a buffer that holds exactly `counts` units of its spans."""
        buffer = huge_buffer(_nbytes(chunk.spans, counts) + OVERREAD)
        reads: list[tuple[int, Pending]] = []
        begins: list[int] = []
        old = new = 0
        try:
            for span, had, wanted in zip(chunk.spans, chunk.counts, counts, strict=True):
                kept = span.bytes_of(0, min(had, wanted))
                buffer[new : new + kept] = chunk.buffer[old : old + kept]
                at = new + kept
                for extent in span.extents(min(had, wanted), wanted):
                    group = self._model.group(extent.group)
                    out = buffer[at : at + extent.nbytes]
                    pending = prefetcher.start(group, extent.first, extent.count, out)
                    reads.append((extent.nbytes, pending))
                    at += extent.nbytes
                begins.append(new)
                old += span.bytes_of(0, had)
                new += span.bytes_of(0, wanted)
            for nbytes, pending in reads:
                pending.wait()
                on_read(nbytes)
        finally:
            for _, pending in reads:
                pending.cancel()
        chunk.buffer, chunk.counts = buffer, counts
        for span, begin, count in zip(chunk.spans, begins, counts, strict=True):
            offsets = np.array(span.offsets[:count], np.int64) - span.offsets[0]
            self._place(span.group, span.first, buffer.ctypes.data + begin + offsets)


def _pieces(span: Span) -> Iterator[Span]:
    """The span in runs of units of CHUNK_BYTES at most; a larger unit is one by itself."""
    begin = 0
    while begin < span.units:
        end = bisect.bisect_right(span.offsets, span.offsets[begin] + CHUNK_BYTES) - 1
        end = max(end, begin + 1)
        yield Span(span.group, span.first + begin, span.offsets[begin : end + 1])
        begin = end


def _nbytes(spans: list[Span], counts: list[int]) -> int:
    return sum(span.bytes_of(0, count) for span, count in zip(spans, counts, strict=True))


def _missing(chunk: _Chunk, counts: list[int]) -> int:
    """Bytes of the chunk that must be read for `counts`."""
    spans = zip(chunk.spans, chunk.counts, counts, strict=True)
    return sum(span.bytes_of(had, wanted) for span, had, wanted in spans if wanted > had)
