"""Text to token ids and back: one door, whatever the kind of vocabulary."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flashllm.errors import CorruptModel, InvalidInput, ModelIOError
from flashllm.generate import tokenizer_config
from flashllm.generate.tokenizer_config import TokenizerConfig
from flashllm.generate.tokenizer_engine import Engine, open_engine, vocabulary_file
from flashllm.generate.tokenizer_files import files_from_gguf, files_from_hf

__all__ = ["StreamDecoder", "Tokenizer", "files_from_gguf", "files_from_hf", "replace_surrogates"]

MAX_FILE_BYTES = 256 << 20


class StreamDecoder:
    """Turns ids into text one at a time; a character comes out once its last byte has."""

    def __init__(self, tokenizer: Tokenizer, *, begins: bool = True, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._strip = begins and tokenizer.strips_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, possibly empty.

        Control tokens have no text, nor have ids that only pad the model's vocabulary.
        """
        if token >= self._tokenizer.vocab_size:
            return ""
        data = self._tokenizer.token_bytes(token, special=self._special)
        if self._strip and data:
            data = data.removeprefix(b" ")
            self._strip = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left: U+FFFD if the last character never became whole, else nothing."""
        return self._utf8.decode(b"", final=True)


class Tokenizer:
    """A model's tokeniser. Any thread may use it.

    bos_id, eos_id: the tokens that begin and end a text, if any. eos_ids: those that end a reply.
    add_bos: the model expects bos_id before raw text (chat templates write their own).
    control_tokens: the text of each control token, such as "<|im_start|>", and its id.
    strips_space: a text's first token may begin with a space that is not part of the text.
    """

    def __init__(self, engine: Engine, config: TokenizerConfig) -> None:
        self._engine = engine
        self._bytes: dict[int, bytes] = {}
        self.vocab_size = engine.vocab_size
        self.control_tokens = engine.control_tokens
        self.strips_space = engine.strips_space
        self._control_ids = frozenset(self.control_tokens.values())
        self.bos_id = config.bos_id
        self.eos_id = config.eos_id
        self.eos_ids = frozenset(config.eos_ids)
        self.add_bos = config.add_bos and self.bos_id is not None

    @classmethod
    def from_dir(cls, path: Path) -> Tokenizer:
        """The tokeniser of the flash model at `path`: tokenizer_config.json and its vocabulary.

        Raises ModelIOError, CorruptModel or UnsupportedModel, naming the file.
        """
        file = path / tokenizer_config.FILE
        config = TokenizerConfig.from_bytes(_read(file), str(file))
        vocabulary = path / vocabulary_file(config)
        engine = open_engine(config, str(file), _read(vocabulary), str(vocabulary))
        return cls(engine, config)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Tokenizer:
        """The tokeniser in `files`, by name, as files_from_gguf and files_from_hf make them.

        Raises CorruptModel or UnsupportedModel.
        """
        config = TokenizerConfig.from_bytes(files[tokenizer_config.FILE], tokenizer_config.FILE)
        name = vocabulary_file(config)
        return cls(open_engine(config, tokenizer_config.FILE, files[name], name), config)

    def encode(
        self,
        text: str,
        *,
        special: bool = False,
        add_bos: bool = False,
        hidden: Mapping[int, str] | None = None,
    ) -> list[int]:
        """The ids of `text`.

        special: control tokens written in the text become their ids. Without it no text, whatever
        it says, yields a control token. hidden: code points of characters that stand for text in
        which nothing is a control token even so. add_bos: put bos_id first, if the model wants one
        and the text does not begin with it.

        Lone surrogates (undecodable bytes read with "surrogateescape") count as U+FFFD each.
        """
        text = replace_surrogates(text)
        if special:
            meanings = {code: replace_surrogates(meant) for code, meant in (hidden or {}).items()}
            ids = self._engine.encode_special(text, meanings)
        else:
            ids = self._engine.encode(text)
        if add_bos and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `special`.

        Bytes that are not UTF-8 become U+FFFD. Raises InvalidInput for an id out of range.
        """
        stream = StreamDecoder(self, special=special)
        pieces = []
        for token in ids:
            if token >= self.vocab_size:
                raise self._unknown(token)
            pieces.append(stream.push(token))
        return "".join(pieces) + stream.finish()

    def stream(self, after: Sequence[int] = ()) -> StreamDecoder:
        """A decoder for ids that arrive one at a time.

        after: the ids that they continue. Where those leave off within a text, a space that comes
        first belongs to it; a new text begins after nothing, and after a control token.
        """
        begins = not after or after[-1] in self._control_ids
        return StreamDecoder(self, begins=begins)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token; b"" for a control token unless `special`, and for an unused id.

        Raises InvalidInput for an id out of range.
        """
        if not special and token in self._control_ids:
            return b""
        if token not in self._bytes:
            if not 0 <= token < self.vocab_size:
                raise self._unknown(token)
            self._bytes[token] = self._engine.spell(token) or b""
        return self._bytes[token]

    def token_text(self, token: int) -> str:
        """The text of one token, control tokens included. Raises InvalidInput if out of range."""
        return self.token_bytes(token, special=True).decode("utf-8", "replace")

    def resembles(self, other: Tokenizer) -> bool:
        """Whether ids mean the same to both, going by about a thousand; one may know more."""
        known = min(self.vocab_size, other.vocab_size)
        ids = range(0, known, max(1, known // 1009))
        return all(self._engine.spell(token) == other._engine.spell(token) for token in ids)

    def _unknown(self, token: int) -> InvalidInput:
        return InvalidInput(f"token {token} is not in the vocabulary of {self.vocab_size}")


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
