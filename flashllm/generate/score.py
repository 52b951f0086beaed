"""How well a model predicts a text: perplexity, and divergence from a reference's predictions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from flashllm.cache.policy import SPARSE_ROWS
from flashllm.errors import EngineError, InvalidInput
from flashllm.generate.golden import Golden, Window
from flashllm.generate.loop import Decoder
from flashllm.layers.sparse_ffn import SparseCounts

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float64]

DEFAULT_WINDOW = 512
_LOGITS = 1 << 22
_MOST_ROWS, _LEAST_ROWS = 128, 2 * SPARSE_ROWS
"""Tokens whose logits are held at once are as many as have about so many, within these bounds: 32
rows of a vocabulary of 128k are 32 MB of float64. They are a step, which may read all weights from
flash; or, of a model that runs sparse, a step each, as in a reply."""

_RESOLUTION = 1e-7
"""A probability sum of float32 terms is not known better than this."""


@dataclasses.dataclass(frozen=True)
class Score:
    """Perplexity of a text: exp of the mean negative log-likelihood over `tokens` predictions."""

    perplexity: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How far a model's predictions are from a reference's, over `tokens` positions.

    mean_kl, max_kl: KL(reference || model) in nats. top1_agreement: share of positions where both
    find the same token most likely. perplexity, reference_perplexity: of the same text; the latter
    is None if the reference does not tell (a golden that keeps only its top tokens).
    """

    mean_kl: float
    max_kl: float
    top1_agreement: float
    perplexity: float
    reference_perplexity: float | None
    tokens: int


@dataclasses.dataclass(frozen=True)
class SparseComparison(Comparison):
    """How far a sparse model's predictions are from its own with all neurons, the reference's.

    active_share: of the neurons, those computed for a token. neurons_read_per_token: bytes of
    neurons read for one, those read in vain included.
    """

    active_share: float
    neurons_read_per_token: float


def split_windows(count: int, size: int = DEFAULT_WINDOW) -> list[Window]:
    """`count` tokens as consecutive windows of `size`; the last may be shorter."""
    if size < 2:
        raise InvalidInput(f"a window of {size} tokens predicts nothing; use 2 or more")
    return [(start, min(start + size, count)) for start in range(0, count, size)]


def perplexity(
    decoder: Decoder,
    tokens: Sequence[int],
    windows: Sequence[Window],
    on_progress: Progress | None = None,
) -> Score:
    """The perplexity of `tokens`: every token of each window but its first is predicted.

    on_progress is told of the tokens read and in all, and may raise Cancelled. Raises InvalidInput
    if there is nothing to predict.
    """
    text = np.asarray(tokens, dtype=np.int32)
    losses = [
        _losses(text, at, logprobs)
        for at, logprobs in _predictions(decoder, text, windows, on_progress)
    ]
    return _score(losses)


def compare_golden(
    decoder: Decoder, golden: Golden, on_progress: Progress | None = None
) -> Comparison:
    """`decoder` against a stored reference.

    KL is taken over the K tokens that the reference lists and one more for all the rest, which is
    exact when K is the vocabulary and a lower bound otherwise.
    """
    divergences, agreements, losses = [], [], []
    for at, ours in _predictions(decoder, golden.tokens, golden.windows, on_progress):
        ids = golden.top_ids[at.start : at.start + len(ours)]
        theirs = golden.top_logprobs[at.start : at.start + len(ours)].astype(np.float64)
        best = np.take_along_axis(ids, theirs.argmax(axis=1)[:, None], axis=1)[:, 0]
        divergences.append(_divergence_of_top(ids, theirs, ours))
        agreements.append(ours.argmax(axis=1) == best)
        losses.append(_losses(golden.tokens, at, ours))
    return _comparison(divergences, agreements, losses, None)


def compare(
    decoder: Decoder,
    reference: Decoder,
    tokens: Sequence[int],
    windows: Sequence[Window],
    on_progress: Progress | None = None,
) -> Comparison:
    """`decoder` against another one, whose predictions are the truth. KL is exact."""
    text = np.asarray(tokens, dtype=np.int32)
    return _compare(
        _predictions(decoder, text, windows, on_progress),
        _predictions(reference, text, windows, None),
        text,
    )


def compare_dense(
    decoder: Decoder,
    tokens: Sequence[int],
    windows: Sequence[Window],
    on_progress: Progress | None = None,
) -> SparseComparison:
    """A decoder that runs sparse against itself with all neurons, which longer steps compute.

    Tokens pass it one by one, as in a reply, and then many at once: windows of at most SPARSE_ROWS
    tokens are left out. Raises InvalidInput if there is no longer one, or it does not run sparse.
    """
    text = np.asarray(tokens, dtype=np.int32)
    longer = [(start, end) for start, end in windows if end - start > SPARSE_ROWS]
    before, at_first = decoder.sparse_counts, decoder.traffic
    if before is None:
        raise InvalidInput("the model does not run sparse; say which way (--sparse)")
    if not longer:
        raise InvalidInput(f"the text is too short; at least {SPARSE_ROWS + 1} tokens are needed")
    found = _compare(
        _predictions(decoder, text, longer, on_progress, least=SPARSE_ROWS + 1),
        _predictions(decoder, text, longer, None, at_once=True, least=SPARSE_ROWS + 1),
        text,
    )
    counts = (decoder.sparse_counts or SparseCounts()) - before
    read = (decoder.traffic - at_first).neuron_bytes
    return SparseComparison(
        **dataclasses.asdict(found),
        active_share=counts.active_share or 0.0,
        neurons_read_per_token=read / max(1, counts.tokens),
    )


def _predictions(
    decoder: Decoder,
    tokens: npt.NDArray[np.int32],
    windows: Sequence[Window],
    on_progress: Progress | None,
    *,
    at_once: bool = False,
    least: int = 1,
) -> Iterator[tuple[range, Floats]]:
    """For stretches of each window: where it is, and log-probabilities [rows, vocab] after it.

    The range runs from the stretch's first token to the end of its window; rows are for the first
    tokens of it. A model that runs sparse takes them one by one, unless `at_once`. A stretch has
    at least `least` tokens, if its window does.
    """
    total, done = sum(end - start for start, end in windows), 0
    rows = _rows(decoder.config.vocab_size)
    one_by_one = decoder.sparse_counts is not None and not at_once
    sequence = decoder.new_sequence(max((end - start for start, end in windows), default=1))
    try:
        for start, end in windows:
            sequence.truncate(0)
            at = start
            while at < end:
                stop = end if end - at - rows < least else at + rows
                piece = tokens[at:stop]
                if one_by_one:
                    steps = [decoder.step(sequence, [token], logits="all") for token in piece]
                    logits = np.concatenate(steps)
                else:
                    logits = decoder.step(sequence, piece, logits="all")
                yield range(at, end), _log_softmax(logits)
                at = stop
                done += len(piece)
                if on_progress is not None:
                    on_progress(done, total)
    finally:
        sequence.close()


def _compare(
    predictions: Iterator[tuple[range, Floats]],
    references: Iterator[tuple[range, Floats]],
    text: npt.NDArray[np.int32],
) -> Comparison:
    """Predictions against references of the same stretches of the text."""
    divergences, agreements, losses, reference_losses = [], [], [], []
    for (at, ours), (_, theirs) in zip(predictions, references, strict=True):
        divergences.append((np.exp(theirs) * (theirs - ours)).sum(axis=1))
        agreements.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        losses.append(_losses(text, at, ours))
        reference_losses.append(_losses(text, at, theirs))
    return _comparison(divergences, agreements, losses, _score(reference_losses).perplexity)


def scratch_bytes(vocab: int) -> int:
    """Memory that scoring takes besides keys and values, with a vocabulary of so many tokens."""
    return _rows(vocab) * vocab * (4 + 2 * 8)


def _rows(vocab: int) -> int:
    """Tokens of a step."""
    return max(_LEAST_ROWS, min(_MOST_ROWS, _LOGITS // vocab))


def _log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    out: Floats = logits.astype(np.float64)
    out -= out.max(axis=1, keepdims=True)
    out -= np.log([[np.exp(row).sum()] for row in out])
    if not np.isfinite(out).all():
        raise EngineError(
            "the model produced logits that are not numbers; check it with `flashllm verify`"
        )
    return out


def _losses(tokens: npt.NDArray[np.int32], at: range, logprobs: Floats) -> Floats:
    """Minus the log-probability of each next token that lies within the window."""
    targets = tokens[at.start + 1 : at.stop][: len(logprobs)]
    losses: Floats = -logprobs[np.arange(len(targets)), targets]
    return losses


def _divergence_of_top(ids: npt.NDArray[np.int32], theirs: Floats, ours: Floats) -> Floats:
    """KL over the listed tokens and one bucket for the rest, per row."""
    listed = np.take_along_axis(ours, ids, axis=1)
    probabilities = np.exp(theirs)
    divergence: Floats = (probabilities * (theirs - listed)).sum(axis=1)
    if ids.shape[1] == ours.shape[1]:
        return divergence
    # Below its resolution a rest says nothing; both floors are alike, so that it then counts 0.
    rest = np.maximum(1.0 - probabilities.sum(axis=1), _RESOLUTION)
    our_rest = np.maximum(1.0 - np.exp(listed).sum(axis=1), _RESOLUTION)
    divergence += rest * np.log(rest / our_rest)
    return divergence


def _score(losses: Sequence[Floats]) -> Score:
    count = sum(part.size for part in losses)
    if not count:
        raise InvalidInput("the text is too short to score; at least two tokens are needed")
    return Score(math.exp(sum(float(part.sum()) for part in losses) / count), count)


def _comparison(
    divergences: Sequence[Floats],
    agreements: Sequence[npt.NDArray[np.bool_]],
    losses: Sequence[Floats],
    reference_perplexity: float | None,
) -> Comparison:
    perplexity = _score(losses).perplexity
    divergence = np.concatenate(divergences)
    return Comparison(
        mean_kl=float(divergence.mean()),
        max_kl=float(divergence.max()),
        top1_agreement=float(np.concatenate(agreements).mean()),
        perplexity=perplexity,
        reference_perplexity=reference_perplexity,
        tokens=divergence.size,
    )
