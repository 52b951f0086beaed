"""The vocabulary in a GGUF's metadata as plain data, checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

from flashllm.errors import CorruptModel
from flashllm.generate.sentencepiece_model import PieceType
from flashllm.generate.special_tokens import END_OF_TURN

_SURROGATE = re.compile("[\ud800-\udfff]")
_OF_THEIR_OWN = (PieceType.CONTROL, PieceType.USER_DEFINED)


@dataclasses.dataclass(frozen=True)
class GGUFTokens:
    """Tokens by id, all distinct, with a PieceType each.

    special: ids by name ("bos", "eos", "eot", "eom", "unknown"), of those that the metadata names.
    ends: those that end a reply: eos, eot, eom, and tokens named in special_tokens.END_OF_TURN.
    All of these but "unknown" are of type CONTROL.
    """

    metadata: Mapping[str, object]
    texts: list[str]
    types: list[int]
    special: dict[str, int]
    ends: tuple[int, ...]

    @classmethod
    def read(cls, metadata: Mapping[str, object]) -> GGUFTokens:
        """Raises CorruptModel for a vocabulary that contradicts itself."""
        texts = strings(metadata, "tokenizer.ggml.tokens")
        _check_distinct(texts)
        types = _types(metadata, len(texts))
        special = {
            name: token
            for name in ("bos", "eos", "eot", "eom", "unknown")
            if (token := _id(metadata, name, len(texts))) is not None
        }
        ends = {special[name] for name in ("eos", "eot", "eom") if name in special}
        ends |= {
            i for i, text in enumerate(texts) if text in END_OF_TURN and types[i] in _OF_THEIR_OWN
        }
        controls = ends | {special[name] for name in ("bos",) if name in special}
        for i in controls - {special.get("unknown")}:
            types[i] = PieceType.CONTROL
        return cls(metadata, texts, types, special, tuple(sorted(ends)))

    def of_type(self, *types: int) -> list[int]:
        """The ids of tokens of these types."""
        return [i for i, found in enumerate(self.types) if found in types]

    def flag(self, name: str, default: bool) -> bool:
        """A flag of the metadata. Raises CorruptModel if it is there but is not true or false."""
        key = f"tokenizer.ggml.{name}"
        value = self.metadata.get(key, default)
        if value not in (True, False):
            raise CorruptModel(f"GGUF metadata: {key!r} is {value!r:.60}, expected true or false")
        return bool(value)

    def scores(self) -> list[float]:
        """The score of each token, finite. Raises CorruptModel."""
        values = self.metadata.get("tokenizer.ggml.scores")
        if not isinstance(values, Sequence) or len(values) != len(self.texts):
            raise CorruptModel("GGUF vocabulary: there is not one score for each token")
        for i, value in enumerate(values):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise CorruptModel(f"GGUF vocabulary: the score of token {i} is {value!r:.60}")
        return [float(value) for value in values]

    def merges(self) -> list[tuple[str, str]]:
        """The merges as pairs, each of known tokens that join into a known token."""
        known = set(self.texts)
        merges = []
        for i, line in enumerate(strings(self.metadata, "tokenizer.ggml.merges")):
            left, space, right = line.partition(" ")
            if not (space and left in known and right in known):
                raise CorruptModel(f"GGUF vocabulary: merge {i} {line[:40]!r} is not of two tokens")
            if left + right not in known:
                raise CorruptModel(f"GGUF vocabulary: merge {i} {line[:40]!r} makes no token")
            merges.append((left, right))
        return merges

    def charsmap(self) -> bytes:
        """The table of character normalisation; empty if there is none. Raises CorruptModel."""
        values = self.metadata.get("tokenizer.ggml.precompiled_charsmap", [])
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise CorruptModel("GGUF metadata: the precompiled charsmap is not a list of bytes")
        try:
            return bytes(value & 255 for value in values)
        except TypeError:
            raise CorruptModel("GGUF metadata: the precompiled charsmap is not of bytes") from None


def text(metadata: Mapping[str, object], key: str, default: str) -> str:
    """A text of the metadata. Raises CorruptModel if it is something else."""
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise CorruptModel(f"GGUF metadata: {key!r} is {type(value).__name__}, expected a string")
    return value


def strings(metadata: Mapping[str, object], key: str) -> list[str]:
    """A list of texts, not empty. Raises CorruptModel if it is missing or something else."""
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or not values:
        raise CorruptModel(
            f"GGUF metadata: {key!r} is missing or not a list; is the file complete?"
        )
    for i, value in enumerate(values):
        if not isinstance(value, str) or _SURROGATE.search(value):
            raise CorruptModel(f"GGUF metadata: item {i} of {key!r} is not a string")
    return list(values)


def _check_distinct(tokens: list[str]) -> None:
    where = {token: i for i, token in enumerate(tokens)}
    if len(where) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if where[token] != i)
        raise CorruptModel(f"GGUF vocabulary: token {twice[:40]!r} appears twice")


def _types(metadata: Mapping[str, object], count: int) -> list[int]:
    values = metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return [int(PieceType.NORMAL)] * count
    if not isinstance(values, Sequence) or any(type(value) is not int for value in values):
        raise CorruptModel("GGUF vocabulary: token types are not a list of numbers")
    if len(values) != count:
        raise CorruptModel(f"GGUF vocabulary: {len(values)} token types for {count} tokens")
    if unknown := set(values) - set(PieceType):
        raise CorruptModel(f"GGUF vocabulary: unknown token type {min(unknown)}")
    return list(values)


def _id(metadata: Mapping[str, object], name: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    if type(value) is not int:
        raise CorruptModel(f"GGUF vocabulary: the id of {name} is not a number")
    if not 0 <= value < count:
        raise CorruptModel(f"GGUF vocabulary: {name} is token {value} of {count}")
    return value
