"""Text to token ids and back."""

from __future__ import annotations

import codecs
import json
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as BPETokenizer

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError, UnsupportedModel
from flashllm.generate.tokenizer_files import files_from_gguf

__all__ = ["StreamDecoder", "Tokenizer", "files_from_gguf"]

MAX_FILE_BYTES = 256 << 20


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (openai/gpt-2, encoder.py), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_BYTE_OF = _byte_alphabet()


class StreamDecoder:
    """Turns ids into text one at a time; a character comes out once its last byte has."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly empty.

        Control tokens have no text, nor have ids that only pad the model's vocabulary.
        """
        if token >= self._tokenizer.vocab_size:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole, else nothing."""
        return self._utf8.decode(b"", final=True)


class Tokenizer:
    """A model's tokeniser: byte-level BPE with control tokens. Any thread may use it.

    bos_id, eos_id: the tokens that begin and end a text, if any. eos_ids: those that end a reply.
    add_bos: the model expects bos_id before raw text (chat templates write their own).
    control_tokens: the text of each control token, such as "<|im_start|>", and its id.
    """

    def __init__(self, tokenizer: BPETokenizer, config: dict[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self.control_tokens: dict[str, int] = {
            token.content: i for i, token in added.items() if token.special
        }
        self._control_ids = frozenset(self.control_tokens.values())
        self.bos_id: int | None = config["bos_id"]
        self.eos_id: int | None = config["eos_id"]
        self.eos_ids: frozenset[int] = frozenset(config["eos_ids"])
        self.add_bos: bool = config["add_bos"] and self.bos_id is not None
        self._prefix = " " if config["add_prefix_space"] else ""

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """The tokeniser in tokenizer.json and tokenizer_config.json of the model at `path`.

        Raises ModelIOError, CorruptModel or UnsupportedModel, naming the file.
        """
        config = _read_config(path / "tokenizer_config.json")
        data = _read(path / "tokenizer.json")
        try:
            tokenizer = BPETokenizer.from_buffer(data)
        except Exception as error:  # the library raises Exception itself
            raise CorruptModel(f"{path / 'tokenizer.json'}: {error}") from error
        made = cls(tokenizer, config)
        for token in (made.bos_id, made.eos_id, *made.eos_ids):
            if token is not None and not 0 <= token < made.vocab_size:
                raise CorruptModel(
                    f"{path / 'tokenizer_config.json'}: token {token} of {made.vocab_size}"
                )
        return made

    def encode(self, text: str, *, special: bool = False, add_bos: bool = False) -> list[int]:
        """The ids of `text`.

        special: control tokens written in the text become their ids. Without it no text, whatever
        it says, yields a control token. add_bos: put bos_id first, if the model wants one.
        Lone surrogates (undecodable bytes read with "surrogateescape") count as U+FFFD each.
        """
        text = self._prefix + replace_surrogates(text) if text else text
        with self._lock:
            self._tokenizer.encode_special_tokens = not special
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not special and not self._control_ids.isdisjoint(ids):
            ids = [token for token in ids if token not in self._control_ids]
        return [self.bos_id, *ids] if add_bos and self.add_bos and self.bos_id is not None else ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`.

        Bytes that are not UTF-8 become U+FFFD. Raises InvalidInput for an id out of range.
        """
        pieces = (self.token_bytes(token, special=special) for token in ids)
        return b"".join(pieces).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        """A decoder for ids that arrive one at a time."""
        return StreamDecoder(self)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; b"" for a control token unless `special`.

        Raises InvalidInput for an id out of range.
        """
        if not special and token in self._control_ids:
            return b""
        if token not in self._bytes:
            self._bytes[token] = self._spell(token)
        return self._bytes[token]

    def token_text(self, token: int) -> str:
        """The text of one token, control tokens included. Raises InvalidInput if out of range."""
        return self.token_bytes(token, special=True).decode("utf-8", "replace")

    def _spell(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        text = self._tokenizer.id_to_token(token) if token >= 0 else None
        if text is None:
            raise InvalidInput(f"token {token} is not in the vocabulary of {self.vocab_size}")
        try:
            return bytes(_BYTE_OF[character] for character in text)
        except KeyError:  # a token not written in the byte alphabet stands for itself
            return str(text).encode()


def replace_surrogates(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 can carry, replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CorruptModel(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise ModelIOError(f"{path}: {error.strerror}; convert the model again", path) from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CorruptModel(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CorruptModel(f"{path}: not a JSON object")
    if config.get("kind") != "byte-level-bpe":
        raise UnsupportedModel(f"{path}: unknown kind of tokeniser {config.get('kind')!r}")
    for key in ("bos_id", "eos_id"):
        if key not in config or not (config[key] is None or type(config[key]) is int):
            raise CorruptModel(f"{path}: {key} is {config.get(key)!r}, expected an id or null")
    ends = config.get("eos_ids")
    if not isinstance(ends, list) or any(type(token) is not int for token in ends):
        raise CorruptModel(f"{path}: eos_ids is not a list of token ids")
    for key in ("add_bos", "add_prefix_space"):
        if type(config.get(key)) is not bool:
            raise CorruptModel(f"{path}: {key} is {config.get(key)!r}, expected true or false")
    return config
