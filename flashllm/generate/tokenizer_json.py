"""The engine for tokenizer.json: byte-level and metaspace vocabularies, run by `tokenizers`."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping

from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import PreTokenizer

from flashllm.errors import CorruptModel
from flashllm.generate.sentencepiece_model import BYTE_NAMES, SPACE
from flashllm.generate.tokenizer_config import MAX_VOCABULARY, TokenizerConfig

FILE = "tokenizer.json"


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character for each byte (openai/gpt-2, encoder.py), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


_FIRST = b'"prepend_scheme":"first"'
_BYTE_OF = _byte_alphabet()


@contextlib.contextmanager
def library_errors(where: str) -> Iterator[None]:
    """Turns what the `tokenizers` library raises, its Rust panics included, into CorruptModel."""
    try:
        yield
    except Exception as error:  # the library raises Exception itself
        raise CorruptModel(f"{where}: {_line(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CorruptModel(f"{where}: {_line(error)}") from None


class JSONEngine:
    """A tokenizer.json at work. Any thread may use it."""

    def __init__(self, data: bytes, config: TokenizerConfig, where: str) -> None:
        """Raises CorruptModel, naming `where`."""
        self._where = where
        self._lock = threading.Lock()
        with library_errors(where):
            self._tokenizer = Tokenizer.from_buffer(data)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._tokenizer.get_added_tokens_decoder()
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
            self._within = _without_prefix(self._tokenizer.pre_tokenizer)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        if not 0 < self.vocab_size <= MAX_VOCABULARY:
            raise CorruptModel(f"{where}: a vocabulary of {self.vocab_size} tokens")
        self.control_tokens = {t.content: i for i, t in added.items() if t.special}
        self.strips_space = config.strip_space
        self._added = {i: token.content for i, token in added.items()}
        controls = {*self.control_tokens.values(), config.bos_id, *config.eos_ids}
        self._never = controls - {config.unk_id, None}
        self._names = {i: content for content, i in self.control_tokens.items()}
        self._prefix = " " if config.add_prefix_space else ""
        self._alphabet = config.kind == "byte-level-bpe"
        self._bytes = BYTE_NAMES if config.byte_fallback else {}

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token."""
        return self._plain(self._prefix + text, first=True) if text else []

    def encode_special(self, text: str, hidden: Mapping[int, str]) -> list[int]:
        """The ids of `text`, whose control tokens count.

        Only those that are literally there: normalisation may make "<s>" of other characters.
        hidden: what single characters stand for once the control tokens have been found.
        """
        text = self._prefix + text if text else text
        encoding = self._run(text, special=True, first=True)
        literal, made = [], False
        for token, (left, right) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._names and self._names[token] in text[left:right]:
                literal.append((token, left, right))
            elif token in self._never:
                made = True
        if not hidden and not made:
            whole: list[int] = encoding.ids
            return whole
        ids: list[int] = []
        at = 0
        for token, left, right in literal:
            ids += [*self._plain(text[at:left].translate(hidden), first=at == 0), token]
            at = right
        return ids + self._plain(text[at:].translate(hidden), first=at == 0)

    def spell(self, token: int) -> bytes | None:
        """The bytes of a token, a space before it included; None for an id that no token has."""
        text = self._added.get(token)
        if text is None:
            text = self._tokenizer.id_to_token(token) if token >= 0 else None
            if text is None:
                return None
            if self._alphabet:
                try:
                    return bytes(_BYTE_OF[character] for character in text)
                except KeyError:  # a token not written in the byte alphabet stands for itself
                    return text.encode()
        elif self._alphabet:
            return text.encode()
        if text in self._bytes:
            return bytes([self._bytes[text]])
        return text.replace(SPACE, " ").encode()

    def _plain(self, text: str, *, first: bool) -> list[int]:
        ids: list[int] = self._run(text, special=False, first=first).ids
        if self._never.isdisjoint(ids):
            return ids
        return [token for token in ids if token not in self._never]

    def _run(self, text: str, *, special: bool, first: bool) -> Encoding:
        with self._lock, library_errors(self._where):
            self._tokenizer.encode_special_tokens = not special
            if self._within is None or first:
                return self._tokenizer.encode(text, add_special_tokens=False)
            usual = self._tokenizer.pre_tokenizer
            self._tokenizer.pre_tokenizer = self._within
            try:
                return self._tokenizer.encode(text, add_special_tokens=False)
            finally:
                self._tokenizer.pre_tokenizer = usual


def _without_prefix(usual: PreTokenizer | None) -> PreTokenizer | None:
    """`usual` for what does not begin a text, if it treats the beginning apart, else None."""
    # By way of its JSON: until tokenizers 0.22 the parts of a Sequence that was read have no end.
    state: bytes = b"" if usual is None else usual.__getstate__()
    if _FIRST not in state:
        return None
    empty = json.loads(Tokenizer(BPE()).to_str())
    empty["pre_tokenizer"] = json.loads(state.replace(_FIRST, b'"prepend_scheme":"never"'))
    within: PreTokenizer = Tokenizer.from_str(json.dumps(empty)).pre_tokenizer
    return within


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
