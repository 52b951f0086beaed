"""The engine for tokenizer.model: SentencePiece vocabularies, run by `sentencepiece`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import sentencepiece

from flashllm.errors import CorruptModel
from flashllm.generate.added_tokens import AddedToken, AddedTokens
from flashllm.generate.sentencepiece_model import (
    BYTE_NAMES,
    SPACE,
    Piece,
    PieceType,
    SentencePieceModel,
    read_model,
    write_model,
)
from flashllm.generate.tokenizer_config import MAX_VOCABULARY, TokenizerConfig

FILE = "tokenizer.model"


class SentencePieceEngine:
    """A tokenizer.model at work. Any thread may use it.

    SentencePiece itself never finds control tokens in a text: the text is cut at them first, and
    each piece of it is tokenised as a text of its own, with a space before it if the vocabulary
    says so. (prefix_once: before the first only.)
    """

    def __init__(self, data: bytes, config: TokenizerConfig, where: str) -> None:
        """Raises CorruptModel or UnsupportedModel."""
        model = _with_roles(read_model(data), config)
        own = (
            AddedToken(i, piece.text, special=True)
            for i, piece in enumerate(model.pieces)
            if piece.type == PieceType.CONTROL
        )
        added = {token.id: token for token in (*own, *config.added_tokens)}
        self._model = model
        self.vocab_size = max([len(model.pieces), *(i + 1 for i in added)])
        if self.vocab_size > MAX_VOCABULARY:
            raise CorruptModel(f"{where}: a vocabulary of {self.vocab_size} tokens")
        self.control_tokens = {t.content: t.id for t in added.values() if t.special}
        self.strips_space = model.add_dummy_prefix or model.remove_extra_whitespaces
        controls = {*self.control_tokens.values(), config.bos_id, *config.eos_ids}
        self._never = controls - {config.unk_id, None}
        self._names = {token.id: token.content for token in added.values()}
        self._plain = AddedTokens(t for t in config.added_tokens if not t.special)
        self._all = AddedTokens(added.values())
        self._prefix = " " if config.prefix_once and model.add_dummy_prefix else ""
        if self._prefix:
            model = dataclasses.replace(model, add_dummy_prefix=False)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(write_model(model))
        except Exception as error:  # the library raises RuntimeError, and others for bad types
            raise CorruptModel(f"{where}: {' '.join(str(error).split())[:300]}") from error

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them a control token."""
        return self._ids(self._plain.split(text))

    def encode_special(self, text: str, hidden: Mapping[int, str]) -> list[int]:
        """The ids of `text`, whose control tokens count.

        hidden: what single characters stand for once the control tokens have been found.
        """
        parts = self._all.split(text)
        return self._ids(self._unhide(parts, hidden) if hidden else parts)

    def spell(self, token: int) -> bytes | None:
        """The bytes of a token, a space before it included; None for an id that no token has."""
        if token in self._names:
            return self._names[token].encode()
        if not 0 <= token < len(self._model.pieces):
            return None
        piece = self._model.pieces[token]
        if piece.type == PieceType.BYTE:
            return bytes([BYTE_NAMES[piece.text]])
        if piece.type == PieceType.UNKNOWN:
            return self._model.unk_surface.encode()
        return piece.text.replace(SPACE, " ").encode()

    def _unhide(
        self, parts: Iterable[str | AddedToken], hidden: Mapping[int, str]
    ) -> Iterator[str | AddedToken]:
        """`parts` with the text that was hidden, in which control tokens do not count."""
        for part in parts:
            if isinstance(part, AddedToken):
                yield part
            else:
                yield from self._plain.split(part.translate(hidden))

    def _ids(self, parts: Iterable[str | AddedToken]) -> list[int]:
        ids: list[int] = []
        prefix = self._prefix
        for part in parts:
            if isinstance(part, AddedToken):
                ids.append(part.id)
            else:
                found = self._processor.EncodeAsIds(prefix + part)
                ids += [token for token in found if token not in self._never]
            prefix = ""
        return ids


def _with_roles(model: SentencePieceModel, config: TokenizerConfig) -> SentencePieceModel:
    """`model` with the added tokens that are in it typed as what they are.

    Raises CorruptModel if one of them is another token there.
    """
    pieces = list(model.pieces)
    for token in config.added_tokens:
        if token.id < len(pieces):
            piece = pieces[token.id]
            if piece.text != token.content:
                raise CorruptModel(
                    f"token {token.id} is {piece.text[:40]!r} in tokenizer.model but "
                    f"{token.content[:40]!r} among the added tokens"
                )
            if token.special and piece.type != PieceType.UNKNOWN:
                pieces[token.id] = Piece(piece.text, piece.score, PieceType.CONTROL)
    changed = tuple(pieces)
    return model if changed == model.pieces else dataclasses.replace(model, pieces=changed)
