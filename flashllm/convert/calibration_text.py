"""The text a model is calibrated on: windows of tokens, spread over all that was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from flashllm.errors import InvalidInput
from flashllm.flash.format import FlashModel
from flashllm.flash.manifest import FILE_NAME
from flashllm.generate.tokenizer import Tokenizer

WINDOW = 512
"""Tokens of a window, unless the model takes fewer."""

LEAST_TOKENS = 128
"""Below this a layer's activity says nothing."""

SHORT_WINDOW = 48
"""A window of fewer tokens is left out, if there are others."""

TOKEN_BYTES = 16
"""Bytes of text that surely make a token."""

Windows = list[NDArray[np.int64]]


def read_windows(files: Sequence[Path], tokenizer: Tokenizer, tokens: int, context: int) -> Windows:
    """About `tokens` tokens of the texts in `files`, in windows of consecutive ones: int64 each.

    A text much longer is read at places evenly spread over it, the others whole. A window has at
    most `context` tokens, and begins as the model wants a text to begin. Raises InvalidInput for a
    file that is not there, and if all together are too short.
    """
    size = min(WINDOW, context)
    windows: Windows = []
    for text in _extracts(files, tokens, size):
        ids = tokenizer.encode(text)
        begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        step = size - len(begin)
        pieces = [[*begin, *ids[i : i + step]] for i in range(0, len(ids), step)]
        windows += [np.array(piece, np.int64) for piece in pieces]
    if long_ones := [window for window in windows if len(window) >= min(SHORT_WINDOW, size)]:
        windows = long_ones
    wanted = -(-tokens // size)
    if len(windows) > wanted:
        windows = [windows[i * len(windows) // wanted] for i in range(wanted)]
    if (count := sum(map(len, windows))) < LEAST_TOKENS:
        raise InvalidInput(
            f"the text has {count} tokens, and {LEAST_TOKENS} are the least that say something; "
            "give more text"
        )
    return windows


def text_identity(model: FlashModel, windows: Windows) -> dict[str, str]:
    """What depends on a model and a text depends on these."""
    text = xxhash.xxh3_64()
    for window in windows:
        text.update(window.tobytes())
        text.update(b"|")
    manifest = xxhash.xxh3_64_hexdigest((model.path / FILE_NAME).read_bytes())
    return {"model": manifest, "text": text.hexdigest()}


def _extracts(files: Sequence[Path], tokens: int, window: int) -> list[str]:
    """The texts, or pieces of them, that make at least so many tokens if there are so many."""
    sizes = [_size(file) for file in files]
    total = sum(sizes)
    if total <= 4 * TOKEN_BYTES * tokens:
        return [_read(file, 0, size) for file, size in zip(files, sizes, strict=True)]
    pieces = -(-tokens // window)
    length = min(TOKEN_BYTES * window, total // pieces)
    found = []
    for piece in range(pieces):
        at = total * piece // pieces
        for file, size in zip(files, sizes, strict=True):
            if at < size:
                found.append(_read(file, at, length))
                break
            at -= size
    return found


def _size(file: Path) -> int:
    try:
        if file.is_file():
            return file.stat().st_size
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be read: {error.strerror}") from None
    raise InvalidInput(f"there is no file {file}")


def _read(file: Path, at: int, length: int) -> str:
    """Text of `length` bytes from `at` on, from its first whole word."""
    try:
        with file.open("rb") as opened:
            opened.seek(at)
            data = opened.read(length)
    except OSError as error:
        raise InvalidInput(f"{file}: cannot be read: {error.strerror}") from None
    if at:
        data = data[data.find(b" ") + 1 :]
    return data.decode("utf-8", "ignore")
