"""Goldens: a reference's predictions for a text, stored as safetensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from flashllm.errors import CorruptModel, ModelIOError

Window = tuple[int, int]

_MAX_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Golden:
    """The K most likely next tokens after each token of a text, by a trusted reference.

    tokens int32 [N]; windows: (start, end) of each stretch that is evaluated on its own; top_ids
    int32 [N, K] and top_logprobs float32 [N, K], natural logarithms.
    """

    tokens: npt.NDArray[np.int32]
    windows: list[Window]
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float32]


def read_golden(path: Path, vocab_size: int) -> Golden:
    """The golden in `path`, for a model with `vocab_size` tokens.

    Raises ModelIOError; CorruptModel for a file that is not a golden, or not for this vocabulary.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CorruptModel(f"{path}: larger than {_MAX_BYTES >> 20} MiB")
        arrays = safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read the golden: {error.strerror}", path) from error
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CorruptModel(f"{path}: not a golden: {error}") from None
    for name, dtype, dims in (
        ("tokens", np.int32, 1),
        ("windows", np.int32, 2),
        ("top_ids", np.int32, 2),
        ("top_logprobs", np.float32, 2),
    ):
        if name not in arrays or arrays[name].dtype != dtype or arrays[name].ndim != dims:
            raise CorruptModel(f"{path}: {name!r} is missing or of the wrong type")
    tokens, windows, ids = arrays["tokens"], arrays["windows"], arrays["top_ids"]
    logprobs = arrays["top_logprobs"]
    if ids.shape != logprobs.shape or len(ids) != len(tokens) or windows.shape[1:] != (2,):
        raise CorruptModel(f"{path}: its tensors' shapes contradict each other")
    if not all(0 <= start < end <= len(tokens) for start, end in windows.tolist()):
        raise CorruptModel(f"{path}: a window lies outside its {len(tokens)} tokens")
    for values in (tokens, ids):
        if values.size == 0 or int(values.min()) < 0 or int(values.max()) >= vocab_size:
            raise CorruptModel(f"{path}: it is for another vocabulary than {vocab_size} tokens")
    if not np.isfinite(logprobs).all() or logprobs.max() > 1e-5:
        raise CorruptModel(f"{path}: its log-probabilities are not probabilities")
    spans = [(int(start), int(end)) for start, end in windows]
    return Golden(tokens, spans, ids, logprobs)
