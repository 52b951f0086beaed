"""What a Hugging Face folder says about its tokeniser, beside the vocabulary itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flashllm.documents import parse_object
from flashllm.errors import CorruptModel, ModelIOError
from flashllm.generate.added_tokens import AddedToken

MAX_SETTINGS = 32 << 20
"""Bytes of a settings file; tokenizer_config.json lists thousands of added tokens at times."""

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class HFSettings:
    """The settings files of a folder, each an empty object if absent.

    tokenizer: tokenizer_config.json. special: special_tokens_map.json. generation:
    generation_config.json. model: config.json. listed: added_tokens.json.
    """

    folder: Path
    tokenizer: Settings
    special: Settings
    generation: Settings
    model: Settings
    listed: Settings

    @classmethod
    def read(cls, folder: Path) -> HFSettings:
        """Read what there is. Raises ModelIOError or CorruptModel, naming the file."""
        return cls(
            folder,
            read_settings(folder / "tokenizer_config.json"),
            read_settings(folder / "special_tokens_map.json"),
            read_settings(folder / "generation_config.json"),
            read_settings(folder / "config.json"),
            read_settings(folder / "added_tokens.json"),
        )

    def content(self, name: str) -> str | None:
        """The text of the token called `name` ("bos", "eos", ...), or None.

        Raises CorruptModel if it is neither text nor an added token.
        """
        key = f"{name}_token"
        source = self.tokenizer if key in self.tokenizer else self.special
        value = source.get(key)
        if isinstance(value, dict):
            value = value.get("content")
        if value is not None and not isinstance(value, str):
            raise CorruptModel(f"{self.folder}: {key} is {value!r:.60}, expected text or null")
        return value or None

    def names(self, name: str) -> bool:
        """Whether the settings say anything of the token called `name`, be it that it is none."""
        return f"{name}_token" in self.tokenizer or f"{name}_token" in self.special

    def ids(self, name: str) -> list[int]:
        """Ids that generation_config.json and config.json give for `name`, the former first.

        Raises CorruptModel if one gives anything but an id, a list of ids or null.
        """
        found: list[int] = []
        text = self.model.get("text_config")
        for source in (self.generation, self.model, text if isinstance(text, dict) else {}):
            value = source.get(f"{name}_token_id")
            for token in value if isinstance(value, list) else [value]:
                if token is None:
                    continue
                if type(token) is not int:
                    raise CorruptModel(f"{self.folder}: {name}_token_id is {token!r:.60}")
                found.append(token)
        return list(dict.fromkeys(found))

    def vocab_size(self) -> int | None:
        """The number of tokens that the model knows; None if config.json does not say."""
        text = self.model.get("text_config")
        for source in (self.model, text if isinstance(text, dict) else {}):
            if type(source.get("vocab_size")) is int:
                size: int = source["vocab_size"]
                return size
        return None

    def flag(self, name: str) -> bool | None:
        """A flag of tokenizer_config.json; None if absent. Raises CorruptModel if it is no flag."""
        value = self.tokenizer.get(name)
        if value is not None and not isinstance(value, bool):
            raise CorruptModel(
                f"{self.folder / 'tokenizer_config.json'}: {name} is {value!r:.60}, "
                "expected true or false"
            )
        return value

    def added_tokens(self) -> list[AddedToken]:
        """The added tokens that the settings list, by id: added_tokens_decoder, or its elder.

        Those named as special tokens are special. Those that the model does not know are left out
        (Gemma 3's is for images). Raises CorruptModel for what is not a list.
        """
        where = str(self.folder / "tokenizer_config.json")
        table = self.tokenizer.get("added_tokens_decoder")
        if table is None:
            table = {str(i): {"content": content} for content, i in self.listed.items()}
            where = str(self.folder / "added_tokens.json")
        if not isinstance(table, dict):
            raise CorruptModel(f"{where}: added_tokens_decoder is not an object")
        special = self._special_contents()
        made = []
        for key, entry in table.items():
            if not key.isascii() or not key.isdecimal() or len(key) > 9:
                raise CorruptModel(f"{where}: {key!r:.60} is not a token id")
            if not isinstance(entry, dict):
                raise CorruptModel(f"{where}: added token {key} is not an object")
            token = AddedToken.from_json({**entry, "id": int(key)}, where)
            made.append(
                dataclasses.replace(token, special=token.special or token.content in special)
            )
        limit = self.vocab_size()
        known = (token for token in made if limit is None or token.id < limit)
        return sorted(known, key=lambda token: token.id)

    def _special_contents(self) -> set[str]:
        found = {self.content(name) for name in ("bos", "eos", "unk", "pad")}
        for source in (self.tokenizer, self.special):
            more = source.get("additional_special_tokens")
            for entry in more if isinstance(more, list) else []:
                content = entry.get("content") if isinstance(entry, dict) else entry
                found.add(content if isinstance(content, str) else None)
        return {content for content in found if content}


def read_settings(path: Path) -> Settings:
    """The JSON object in `path`; {} if there is no such file. Raises ModelIOError, CorruptModel."""
    data = read_bounded(path, MAX_SETTINGS)
    return {} if data is None else parse_object(data, str(path), MAX_SETTINGS)


def read_bounded(path: Path, limit: int) -> bytes | None:
    """The content of `path`; None if there is no such file.

    Raises CorruptModel if it has more than `limit` bytes, ModelIOError if it cannot be read.
    """
    try:
        if not path.exists():
            return None
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from error
    if len(data) > limit:
        raise CorruptModel(f"{path}: larger than {limit >> 20} MiB; download the model again")
    return data
