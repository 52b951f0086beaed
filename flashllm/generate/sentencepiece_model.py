"""tokenizer.model, checked: SentencePiece's ModelProto as plain data, read and written by hand.

The fields are those of github.com/google/sentencepiece, src/sentencepiece_model.proto. The
library's own reader trusts what it reads, so it gets only what write() makes of checked values.
"""

from __future__ import annotations

import dataclasses
import enum
import struct
from collections.abc import Iterator
from typing import NamedTuple

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.charsmap import check_charsmap

MAX_BYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_LENGTH = 1 << 12
MAX_SCORE = 1e30  # their sums are to stay finite
SPACE = "\u2581"

BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""How the tokens that stand for single bytes are written."""


class PieceType(enum.IntEnum):
    """What a piece is for; the numbers are SentencePiece's, and GGUF's too."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


UNIGRAM, BPE = 1, 2
_FLOAT = struct.Struct("<f")
_ALGORITHMS = {UNIGRAM: "unigram", BPE: "bpe", 3: "word", 4: "char"}


class Piece(NamedTuple):
    """A token: its text, in which U+2581 is a space, how eagerly it is used, and a PieceType."""

    text: str
    score: float
    type: int


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """A vocabulary and how text is prepared for it.

    algorithm: UNIGRAM or BPE. byte_fallback: characters without a piece become byte pieces.
    add_dummy_prefix: a space is put before each text. remove_extra_whitespaces: runs of spaces
    become one, at the ends none. escape_whitespaces: spaces are written U+2581. charsmap: the
    normalisation of characters, empty for none. unk_surface: the text of the unknown piece.
    """

    pieces: tuple[Piece, ...]
    algorithm: int
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool = True
    charsmap: bytes = b""
    unk_surface: str = " \u2047 "

    def __post_init__(self) -> None:
        """Raise CorruptModel or UnsupportedModel for values that the library might choke on."""
        if self.algorithm not in (UNIGRAM, BPE):
            name = _ALGORITHMS.get(self.algorithm, self.algorithm)
            raise UnsupportedModel(
                f"SentencePiece vocabulary of kind {name!r}; this version knows unigram and bpe"
            )
        if not 0 < len(self.pieces) <= MAX_PIECES:
            raise CorruptModel(f"SentencePiece vocabulary of {len(self.pieces)} pieces")
        seen: set[str] = set()
        for i, piece in enumerate(self.pieces):
            if not piece.text or "\0" in piece.text or len(piece.text) > MAX_PIECE_LENGTH:
                raise CorruptModel(f"SentencePiece vocabulary: piece {i} has an impossible text")
            if piece.text in seen:
                raise CorruptModel(
                    f"SentencePiece vocabulary: piece {i} {piece.text[:40]!r} appears twice"
                )
            if not abs(piece.score) < MAX_SCORE or not 1 <= piece.type <= 6:  # nor NaN
                raise CorruptModel(f"SentencePiece vocabulary: piece {i} has no sensible score")
            seen.add(piece.text)
        types = [piece.type for piece in self.pieces]
        if types.count(PieceType.UNKNOWN) != 1:
            raise CorruptModel("SentencePiece vocabulary: there is not exactly one unknown piece")
        if not any(kind == PieceType.NORMAL for kind in types):
            raise CorruptModel("SentencePiece vocabulary: it has no ordinary piece")
        byte_names = {piece.text for piece in self.pieces if piece.type == PieceType.BYTE}
        if byte_names != (set(BYTE_NAMES) if self.byte_fallback else set()):
            raise CorruptModel("SentencePiece vocabulary: its byte pieces are not the 256 bytes")
        check_charsmap(self.charsmap)


def read_model(data: bytes) -> SentencePieceModel:
    """The model in `data`, the content of a tokenizer.model.

    Raises CorruptModel for what is not one; UnsupportedModel for kinds that nothing here runs.
    """
    if len(data) > MAX_BYTES:
        raise CorruptModel(f"SentencePiece model of {len(data)} bytes")
    pieces: list[Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    denormalizer: dict[int, int | bytes] = {}
    specs = {2: trainer, 3: normalizer, 5: denormalizer}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_bytes(value)))
        elif number in specs:
            specs[number].update(_fields(_bytes(value)))
    if _bytes(denormalizer.get(2, b"")):
        raise UnsupportedModel("SentencePiece model with rules that change its output")
    if trainer.get(24):
        raise UnsupportedModel("SentencePiece model whose spaces follow the words")
    return SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=_int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        charsmap=_bytes(normalizer.get(2, b"")),
        unk_surface=_text(_bytes(trainer.get(44, " \u2047 ".encode()))),
    )


def write_model(model: SentencePieceModel) -> bytes:
    """The content of a tokenizer.model that holds `model`."""
    unknown = next(p.text for p in model.pieces if p.type == PieceType.UNKNOWN)
    controls = [p.text for p in model.pieces if p.type == PieceType.CONTROL]
    absent = [-1] * 3  # bos, eos and pad: ids that the library only reports, and we know
    out = bytearray()
    for piece in model.pieces:
        text = piece.text.encode()
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + _FLOAT.pack(piece.score)
        if piece.type != PieceType.NORMAL:
            body += b"\x18" + _varint(piece.type)
        out += b"\x0a" + _varint(len(body)) + body
    trainer = _number(3, model.algorithm) + _number(4, len(model.pieces))
    trainer += _number(35, model.byte_fallback)
    trainer += _data(44, model.unk_surface.encode()) + _data(45, unknown.encode())
    for field, token in zip((41, 42, 43), absent, strict=True):
        trainer += _number(field, token)
    for field, name in zip((46, 47, 48), controls, strict=False):
        trainer += _data(field, name.encode())
    normalizer = _data(2, model.charsmap) if model.charsmap else b""
    normalizer += _number(3, model.add_dummy_prefix)
    normalizer += _number(4, model.remove_extra_whitespaces)
    normalizer += _number(5, model.escape_whitespaces)
    return bytes(out) + _data(2, trainer) + _data(3, normalizer)


def _piece(data: bytes) -> Piece:
    size = data[1] if len(data) > 1 else 0
    # As nearly all are written: field 1 of under 128 bytes, then 2. A vocabulary has 256,000.
    if size < 128 and len(data) == size + 7 and data[0] == 0x0A and data[size + 2] == 0x15:
        return Piece(_text(data[2 : size + 2]), _FLOAT.unpack_from(data, size + 3)[0], 1)
    fields = dict(_fields(data))
    score = fields.get(2, b"\0\0\0\0")
    if not isinstance(score, bytes) or len(score) != 4:
        raise CorruptModel("SentencePiece vocabulary: a score is not a number")
    return Piece(_text(_bytes(fields.get(1, b""))), _FLOAT.unpack(score)[0], _int(fields.get(3, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: integers, or the bytes of anything else."""
    at, end = 0, len(data)
    while at < end:
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _read_varint(data, at)
            yield key >> 3, number
            continue
        if kind == 2:
            size, at = _read_varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise CorruptModel("not a SentencePiece model: unknown wire type")
        if size > end - at:
            raise CorruptModel("not a SentencePiece model, or cut short")
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise CorruptModel("not a SentencePiece model, or cut short")


def _varint(value: int) -> bytes:
    if 0 <= value < 128:
        return bytes((value,))
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _data(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise CorruptModel("not a SentencePiece model: a number where text belongs")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise CorruptModel("not a SentencePiece model: text where a number belongs")
    return value


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise CorruptModel("SentencePiece vocabulary: a piece is not UTF-8") from None
