"""Opening a vocabulary with the engine that its kind asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from flashllm.generate import tokenizer_json, tokenizer_sentencepiece
from flashllm.generate.tokenizer_config import TokenizerConfig
from flashllm.generate.tokenizer_json import JSONEngine
from flashllm.generate.tokenizer_sentencepiece import SentencePieceEngine


class Engine(Protocol):
    """What runs a vocabulary. strips_space: the space that begins a text is its own addition."""

    vocab_size: int
    control_tokens: dict[str, int]
    strips_space: bool

    def encode(self, text: str) -> list[int]: ...
    def encode_special(self, text: str, hidden: Mapping[int, str]) -> list[int]: ...
    def spell(self, token: int) -> bytes | None: ...


def vocabulary_file(config: TokenizerConfig) -> str:
    """The name of the file that holds the vocabulary."""
    return tokenizer_sentencepiece.FILE if config.kind == "sentencepiece" else tokenizer_json.FILE


def open_engine(config: TokenizerConfig, file: str, data: bytes, where: str) -> Engine:
    """The engine for `config`, read from `file`, and the vocabulary in `data`, read from `where`.

    Raises CorruptModel or UnsupportedModel, naming the file.
    """
    engine: Engine
    if config.kind == "sentencepiece":
        engine = SentencePieceEngine(data, config, where)
    else:
        engine = JSONEngine(data, config, where)
    config.check(engine.vocab_size, file)
    return engine
