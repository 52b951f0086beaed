"""Session files: a conversation and its KV cache as one safetensors file, read as hostile input."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
import xxhash

from flashllm.cache.kv import SavedArray
from flashllm.errors import CorruptModel, DiskFull, InvalidInput, ModelIOError
from flashllm.generate.session import ChatModel, SessionState
from flashllm.generate.template import Message
from flashllm.model.config import MAX_LAYERS, ModelConfig
from flashllm.model.memory import kv_bytes
from flashllm.safetensors_header import TensorPlace, read_header

FORMAT, VERSION = "flashllm-session", "1"

_DTYPES = {"F16": "<f2", "F32": "<f4", "I32": "<i4", "I64": "<i8", "U8": "|u1"}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_KV = "kv."
_MAX_HEADER = 16 << 20
_MAX_MESSAGES = 1 << 16

Arrays = dict[str, npt.NDArray[Any]]


def save(state: SessionState, path: Path) -> None:
    """Write the session to `path`, whole or not at all.

    Raises ModelIOError or DiskFull, naming the file.
    """
    arrays: Arrays = {"tokens": np.asarray(state.tokens, dtype=np.int32)}
    arrays |= {_KV + name: array for name, array in state.sequence.export().items()}
    messages = [{"role": m.role, "content": m.content} for m in state.messages]
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "model": state.model.identity,
        "kv_dtype": state.model.decoder.kv_dtype,
        "n_ctx": str(state.n_ctx),
        "messages": json.dumps(messages),
    }
    metadata["xxh3"] = _checksum(metadata, arrays)
    try:
        _write(path, metadata, arrays)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"{path}: no room to save the session", path) from error
        raise ModelIOError(f"{path}: cannot save the session: {error.strerror}", path) from error


def load(path: Path, model: ChatModel, n_ctx: int | None = None) -> SessionState:
    """The session in `path`, for `model`.

    The KV cache is restored if the file was saved with this very model and fits n_ctx (by default
    what it was saved with); otherwise the next reply reads the conversation anew. Raises
    ModelIOError; InvalidInput for a cache that could be restored but for the dtype of its keys and
    values; CorruptModel for a file that is not a session, or lies.
    """
    try:
        with path.open("rb") as file:
            return _load(file, path, model, n_ctx)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read the session: {error.strerror}", path) from error


def _load(file: BinaryIO, path: Path, model: ChatModel, n_ctx: int | None) -> SessionState:
    metadata, arrays = _read(file, path, model.decoder.config)
    messages = _messages(path, metadata["messages"])
    tokens = arrays.pop("tokens", None)
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32 or tokens.ndim != 1:
        raise CorruptModel(f"{path}: the session's tokens are missing or not a list of int32")
    vocab = model.decoder.config.vocab_size
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab:
        raise CorruptModel(f"{path}: the session has tokens outside the vocabulary of {vocab}")
    if n_ctx is None:
        n_ctx = _saved_context(path, metadata["n_ctx"], model.decoder.config)
    state = SessionState(model, n_ctx, messages)
    if metadata["model"] != model.identity or tokens.size > n_ctx:
        return state
    kept_in = metadata.get("kv_dtype", model.decoder.kv_dtype)
    if kept_in != model.decoder.kv_dtype:
        raise InvalidInput(
            f"{path}: the session was saved with keys and values in {kept_in[:40]!r}, and this "
            f"model keeps them in {model.decoder.kv_dtype!r}; load the model with that dtype "
            "(--kv-dtype)"
        )
    try:
        state.sequence.restore({name.removeprefix(_KV): a for name, a in arrays.items()})
        if state.sequence.length != tokens.size:
            raise CorruptModel(f"{tokens.size} tokens for a cache of {state.sequence.length}")
    except CorruptModel as error:
        state.close()
        raise CorruptModel(f"{path}: the session's cache: {error}") from None
    state.adopt(tokens.tolist())
    return state


def _checksum(metadata: dict[str, str], arrays: Mapping[str, SavedArray]) -> str:
    """xxh3 of everything in the file but the checksum itself."""
    digest = xxhash.xxh3_64()
    for key in sorted(metadata.keys() - {"xxh3"}):
        digest.update(f"{key}={metadata[key]}\n".encode("utf-8", "surrogatepass"))
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        for part in _parts(arrays[name]):
            digest.update(part.data)
    return digest.hexdigest()


def _write(path: Path, metadata: dict[str, str], arrays: Arrays) -> None:
    """A sibling temporary file, flushed to disk, then renamed over `path`."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            _write_safetensors(file, metadata, arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_safetensors(file: IO[bytes], metadata: dict[str, str], arrays: Arrays) -> None:
    """The library can only write from one buffer of everything; caches are too large for that."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        dtype = _NAMES[array.dtype]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        for part in _parts(array):
            file.write(part.data)


def _parts(array: SavedArray) -> Iterator[npt.NDArray[Any]]:
    """The array piece by piece, each contiguous: a whole copy of a cache would take much memory."""
    for part in array if len(array.shape) > 1 else [array]:
        yield np.ascontiguousarray(part)


def _read(
    file: BinaryIO, path: Path, config: ModelConfig
) -> tuple[dict[str, str], dict[str, SavedArray]]:
    """Metadata and arrays of the file, with sizes and checksum verified."""
    size = os.fstat(file.fileno()).st_size
    if size > _MAX_HEADER + kv_bytes(config, config.context_length, "f32"):
        raise CorruptModel(f"{path}: {size} bytes is more than a session of this model can be")
    places = read_header(file, path, size, _MAX_HEADER)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    metadata = json.loads(file.read(length)).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise CorruptModel(f"{path}: not a session file of flashllm")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptModel(f"{path}: the session's metadata are not texts")
    if metadata.get("version") != VERSION:
        raise CorruptModel(
            f"{path}: session format {metadata.get('version')!r}, this flashllm reads {VERSION!r}"
        )
    if missing := {"model", "n_ctx", "messages", "xxh3"} - metadata.keys():
        raise CorruptModel(f"{path}: the session lacks {min(missing)!r}")
    arrays: dict[str, SavedArray] = {}
    for name, place in places.items():
        if place.dtype not in _DTYPES:
            raise CorruptModel(f"{path}: tensor {name[:80]!r} has type {place.dtype!r}")
        stored = StoredArray(file, path, place)
        arrays[name] = stored if len(place.shape) > 1 else stored.whole()
    if metadata["xxh3"] != _checksum(metadata, arrays):
        raise CorruptModel(f"{path}: the session's checksum does not match; the file is damaged")
    return metadata, arrays


class StoredArray:
    """An array in a file, whose parts [i] are read when they are asked for: a cache may be large.

    Raises CorruptModel for more parts than layers can be, and if the file has become shorter.
    """

    def __init__(self, file: BinaryIO, path: Path, place: TensorPlace) -> None:
        self.shape = place.shape
        self.dtype = np.dtype(_DTYPES[place.dtype])
        self._file = file
        self._path = path
        self._place = place
        if len(place.shape) > 1 and place.shape[0] > MAX_LAYERS:
            raise CorruptModel(f"{path}: a cache of {place.shape[0]} layers; the file is damaged")

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        count = self.shape[0]
        for i in range(count):
            size = self._place.nbytes // count
            yield self._part(i * size, size).reshape(self.shape[1:])

    def whole(self) -> npt.NDArray[Any]:
        """All of it."""
        return self._part(0, self._place.nbytes).reshape(self.shape)

    def _part(self, begin: int, size: int) -> npt.NDArray[Any]:
        self._file.seek(self._place.offset + begin)
        data = self._file.read(size)
        if len(data) != size:
            raise CorruptModel(f"{self._path}: the file has become shorter; save it again")
        return np.frombuffer(data, self.dtype)


def _messages(path: Path, text: str) -> list[Message]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptModel(f"{path}: the session's messages are not JSON") from None
    if not isinstance(items, list) or len(items) > _MAX_MESSAGES:
        raise CorruptModel(f"{path}: the session's messages are not a list of reasonable length")
    try:
        return [Message(**item) for item in items]
    except (TypeError, InvalidInput) as error:
        raise CorruptModel(f"{path}: the session has a malformed message: {error}") from None


def _saved_context(path: Path, text: str, config: ModelConfig) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) <= config.context_length):
        raise CorruptModel(f"{path}: the session's n_ctx is {text[:40]!r}")
    return int(text)
