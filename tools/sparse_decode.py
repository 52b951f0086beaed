"""flashllm's decoding of a sparse model, token by token, and what its reads take by themselves.

    python tools/sparse_decode.py MODEL --mem 6880000000 --sparse predictor --tokens 24 --warm 8

Feeds consecutive token ids, for which make_sparse.py plants its statistics. Prints a line of JSON
for each token, then one of the reads replayed without any computing. bench_sparse.py runs it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.cache.units import Units
from flashllm.flash import scatter
from flashllm.flash.aio import ReadQueue
from flashllm.kernels.slots import in_common
from flashllm.layers.sparse_ffn import SparseFeedForward
from flashllm.model import loader
from flashllm.model.decoder import Decoder
from flashllm.model.options import LoadOptions

Asked = list[tuple[str, NDArray[np.int64]]]
"""The units that a token asked for: (group, units), layer by layer."""


class Apart(ReadQueue):
    """Reads every neuron's row and column by a read each, as if they lay apart.

    So does a model whose matrices are stored one after another, which the paper's bundles are
    compared with. First all rows, then all columns, so that the system joins none of them.
    """

    def read(
        self,
        file: int,
        offsets: NDArray[np.int64],
        pieces: NDArray[np.void],
        bounds: NDArray[np.int64],
        on_read: Callable[[int, int], None],
    ) -> None:
        """As ReadQueue's, by two reads a piece."""
        sizes = pieces["nbytes"].astype(np.int64)
        begins = np.cumsum(sizes) - sizes
        run = np.repeat(np.arange(len(offsets)), np.diff(bounds))
        places = offsets[run] + begins - begins[bounds[:-1]][run]
        half = sizes // 2
        halves = np.concatenate([pieces, pieces])
        halves["nbytes"] = np.concatenate([half, sizes - half])
        halves["address"][len(pieces) :] += half.astype(np.uint64)
        left = (2 * np.diff(bounds)).tolist()
        found = [0] * len(offsets)

        def on_half(i: int, result: int) -> None:
            one = int(run[i % len(pieces)])
            left[one] -= 1
            found[one] += result
            if not left[one]:
                on_read(one, found[one])

        ends = np.arange(len(halves) + 1)
        super().read(file, np.concatenate([places, places + half]), halves, ends, on_half)


class Foreseeing(SparseFeedForward):
    """Foresees as badly as it is told to: the scores of what enters a layer get noise.

    A planted model's are those it will have, for its attention says nothing about them. So neurons
    that are mistaken are those near the threshold, as where attention did change the scores.
    noise: float32 [many]. chosen, found, vain: neurons, of guesses as yet.
    """

    noise: NDArray[np.float32]
    rng = np.random.default_rng(0)
    chosen = found = vain = 0
    guessed: NDArray[np.int64] | None = None

    def prefetch(self, rows: int) -> None:
        """A guess; what spoils it is not counted as managing memory."""
        begin = int(self.rng.integers(len(self.noise) - self._neurons))
        self._s.scores.values[0, : self._neurons] += self.noise[begin : begin + self._neurons]
        super().prefetch(rows)

    def _foreseen(self, rows: int) -> NDArray[np.int64]:
        """Note the guess."""
        self.guessed = super()._foreseen(rows)
        return self.guessed

    def _learn(self, chosen: NDArray[np.int64]) -> None:
        """Count what became of it."""
        if self.guessed is not None:
            right = in_common(self.guessed, chosen)
            self.chosen += len(chosen)
            self.found += right
            self.vain += len(self.guessed) - right
        super()._learn(chosen)


class Recording(Units):
    """Remembers what every token asked for."""

    asked: list[Asked]

    def begin_step(self, *args: Any, **options: Any) -> None:
        """A token begins."""
        super().begin_step(*args, **options)
        self.asked.append([])

    def bring(self, group: str, units: NDArray[np.int64], *args: Any, **options: Any) -> Any:
        """Remember, and bring."""
        self.asked[-1].append((group, units.copy()))
        return super().bring(group, units, *args, **options)


def main() -> None:
    """Decode, then replay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--mem", type=int, help="bytes; all of the model in memory without it")
    parser.add_argument("--sparse", choices=("predictor", "oracle", "gate"))
    parser.add_argument("--window", type=int)
    parser.add_argument(
        "--apart", action="store_true", help="rows and columns by reads of their own"
    )
    parser.add_argument("--gap", type=int, help="bytes read in vain to join two reads")
    parser.add_argument(
        "--foresight", type=float, metavar="NOISE", help="foresee neurons by scores so noisy"
    )
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--warm", type=int, default=8, help="tokens before those that count")
    parser.add_argument("--first", type=int, default=1000, help="id of the first token")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    Recording.asked = []
    if options.foresight is None:
        SparseFeedForward.may_read = False  # type: ignore[assignment,method-assign]
    loader.Units = units_with(options.gap)  # type: ignore[assignment]
    if options.apart:
        scatter.ReadQueue = Apart  # type: ignore[misc]
    decoder = loader.load_decoder(
        options.model,
        LoadOptions(
            mem_budget=options.mem,
            n_ctx=options.tokens + options.warm,
            threads=options.threads,
            sparse=options.sparse,
            window=options.window,
        ),
        step_tokens=8,
    )
    if options.foresight is not None:
        foresee(decoder, options.foresight)
    tell("loaded", pinned=decoder.resident_bytes, streamed=decoder.streamed_bytes)
    decode(decoder, options.first, options.warm, options.tokens)
    if options.foresight is not None:
        chosen, found, vain = (
            sum(getattr(layer.sparse.ffn, name, 0) for layer in decoder._layers if layer.sparse)
            for name in ("chosen", "found", "vain")
        )
        tell("foresight", found=found / max(1, chosen), vain=vain / max(1, chosen))
    elif options.sparse and options.mem is not None:
        replay(decoder, options.warm)
    decoder.close()


def foresee(decoder: Decoder, noise: float) -> None:
    """Have all layers foresee neurons with such noise, but those that read what attention does."""
    count = 4 * decoder.config.ffn.size
    drawn = np.random.default_rng(1).standard_normal(count, dtype=np.float32)
    Foreseeing.noise = drawn * np.float32(noise)
    for layer in decoder._layers:
        if layer.sparse is not None and not layer.sparse.is_sure:
            layer.sparse.ffn.__class__ = Foreseeing


def units_with(gap: int | None) -> Any:
    """Makes units that record, with another gap if one is given."""

    def make(*args: Any, **options: Any) -> Recording:
        if gap is not None:
            options["gap"] = gap
        return Recording(*args, **options)

    return make


def decode(decoder: Decoder, first: int, warm: int, tokens: int) -> None:
    """One step for each token; a line for each that counts."""
    sequence = decoder.new_sequence(warm + tokens)
    for i in range(warm + tokens):
        traffic, counts = decoder.traffic, decoder.sparse_counts
        start = time.perf_counter()
        decoder.step(sequence, [first + i])
        seconds = time.perf_counter() - start
        moved, after = decoder.traffic - traffic, decoder.sparse_counts
        if i >= warm:
            figures = {"seconds": seconds, "read": moved.read_bytes, "wait": moved.wait_s}
            if after and counts:
                figures["manage"] = after.manage_s - counts.manage_s
                figures["active"] = (after.fired - counts.fired) / (after.neurons - counts.neurons)
            tell("token", **figures)
    sequence.close()


def replay(decoder: Decoder, warm: int) -> None:
    """Bring what the tokens asked for once more, from an empty window, and wait for it at once."""
    units: Recording = decoder._units  # type: ignore[assignment]
    cache = units._neurons
    if cache is None:
        return
    cache.reset()
    asked, Recording.asked = Recording.asked, [[]]
    seconds, read, reads = [], [], []
    for token in asked:
        cache.begin_step()
        had, begun, start = cache.read_bytes, cache.reads, time.perf_counter()
        for group, wanted in token:
            cache.bring(units._layer_of[group], wanted).wait()
        seconds.append(time.perf_counter() - start)
        read.append(cache.read_bytes - had)
        reads.append(cache.reads - begun)
    tell(
        "replay",
        seconds=sum(seconds[warm:]) / len(seconds[warm:]),
        read=sum(read[warm:]) / len(read[warm:]),
        reads=sum(reads[warm:]) / len(reads[warm:]),
    )


def tell(event: str, **figures: float) -> None:
    """Print a line."""
    print(json.dumps({"event": event, **figures}), flush=True)


if __name__ == "__main__":
    main()
