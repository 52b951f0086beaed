"""A flash model's tokenizer_config.json: which engine reads the vocabulary, and the special ids."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from flashllm.documents import field, parse_object
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.added_tokens import AddedToken

FILE = "tokenizer_config.json"

KINDS = ("byte-level-bpe", "metaspace", "sentencepiece")
"""How a vocabulary spells text, and the file that holds it.

byte-level-bpe  tokenizer.json; tokens are written in GPT-2's alphabet of bytes
metaspace       tokenizer.json; tokens are text in which U+2581 stands for a space
sentencepiece   tokenizer.model
"""

MAX_VOCABULARY = 1 << 22


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """What the vocabulary's own file does not say.

    kind: one of KINDS. bos_id, eos_id: the tokens that begin and end a text, if any. eos_ids: those
    that end a reply. add_bos: the model expects bos_id before raw text. unk_id: the token of what
    the vocabulary cannot spell.

    add_prefix_space (of byte-level-bpe): a space is put before any text. byte_fallback (of
    metaspace): tokens "<0x41>" are bytes. strip_space (of metaspace): decoding drops one space from
    the beginning of a text. prefix_once (of sentencepiece): a space is put before a text, not after
    every control token. added_tokens (of sentencepiece): tokens that are not in tokenizer.model, or
    whose role differs.
    """

    kind: str
    bos_id: int | None
    eos_id: int | None
    eos_ids: tuple[int, ...]
    add_bos: bool
    unk_id: int | None = None
    add_prefix_space: bool = False
    byte_fallback: bool = False
    strip_space: bool = False
    prefix_once: bool = False
    added_tokens: tuple[AddedToken, ...] = ()

    def to_bytes(self) -> bytes:
        """The file's content."""
        data = dataclasses.asdict(self)
        data["added_tokens"] = [token.to_json() for token in self.added_tokens]
        return json.dumps(data, indent=1).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> TokenizerConfig:
        """Read the file's content. Raises CorruptModel or UnsupportedModel, naming `where`."""
        data = parse_object(content, where, 64 << 20)
        if data.get("kind") not in KINDS:
            raise UnsupportedModel(
                f"{where}: unknown kind of tokeniser {data.get('kind')!r:.60}; "
                f"this version knows {', '.join(KINDS)}"
            )
        if unknown := data.keys() - {each.name for each in dataclasses.fields(cls)}:
            raise CorruptModel(
                f"{where}: unknown key {min(unknown)!r:.60}; convert the model again"
            )
        ends = field(data, "eos_ids", list, where)
        if any(type(token) is not int for token in ends):
            raise CorruptModel(f"{where}: eos_ids is not a list of token ids")
        added = data.get("added_tokens", [])
        if not isinstance(added, list):
            raise CorruptModel(f"{where}: added_tokens is not a list")
        flags = {
            name: field({name: False, **data}, name, bool, where)
            for name in ("add_prefix_space", "byte_fallback", "strip_space", "prefix_once")
        }
        return cls(
            kind=data["kind"],
            bos_id=_optional_id(data, "bos_id", where),
            eos_id=_optional_id(data, "eos_id", where),
            eos_ids=tuple(ends),
            add_bos=field(data, "add_bos", bool, where),
            unk_id=_optional_id({"unk_id": None, **data}, "unk_id", where),
            added_tokens=tuple(AddedToken.from_json(each, where) for each in added),
            **flags,
        )

    def check(self, vocab_size: int, where: str) -> None:
        """Raise CorruptModel if an id is not in a vocabulary of `vocab_size` tokens."""
        for token in (self.bos_id, self.eos_id, self.unk_id, *self.eos_ids):
            if token is not None and not 0 <= token < vocab_size:
                raise CorruptModel(f"{where}: token {token} of {vocab_size}")


def _optional_id(data: dict[str, Any], key: str, where: str) -> int | None:
    if key not in data or not (data[key] is None or type(data[key]) is int):
        raise CorruptModel(f"{where}: {key} is {data.get(key)!r:.60}, expected an id or null")
    value: int | None = data[key]
    return value
