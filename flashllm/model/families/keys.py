"""Typed reading of foreign metadata: every value is checked where a family asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel

ReadVector = Callable[[str], NDArray[np.float32]]


class Keys:
    """Metadata of a checkpoint, of which a key is named in every message.

    tensors: the names of the checkpoint's tensors. read_vector(name) reads a one-dimensional one.
    """

    what = "metadata"

    def __init__(
        self, metadata: Mapping[str, Any], tensors: Collection[str], read_vector: ReadVector
    ):
        self._metadata = metadata
        self.tensors = frozenset(tensors)
        self.read_vector = read_vector

    def name(self, key: str) -> str:
        """The key as the checkpoint spells it."""
        return key

    def get(self, key: str) -> Any:
        """The value of key as it is, None if it is not there."""
        return self._metadata.get(self.name(key))

    def integer(self, key: str, default: int | None = None, most: int = 1 << 62) -> int:
        """A positive whole number, `most` at the most."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            limit = f" up to {most}" if most < 1 << 62 else ""
            raise self.wrong(key, value, f"a positive whole number{limit}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number."""
        value = self._value(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.wrong(key, value, "a number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, value, "a string")
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._value(key, None)
        if not isinstance(value, list) or any(
            isinstance(item, bool) or not isinstance(item, (int, float)) for item in value
        ):
            raise self.wrong(key, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def wrong(self, key: str, value: object, expected: str) -> CorruptModel:
        """The error to raise for a value of key that is not as expected."""
        return CorruptModel(f"{self.what}: {self.name(key)} is {value!r:.80}, expected {expected}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise CorruptModel(f"{self.what} lacks {self.name(key)!r}; the file is incomplete")
        return value


class GGUFKeys(Keys):
    """GGUF metadata; keys are given without the architecture: "block_count" is "llama.block_count".

    architecture: the value of general.architecture.
    """

    what = "GGUF metadata"

    def __init__(
        self,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        read_vector: ReadVector,
    ):
        super().__init__(metadata, tensors, read_vector)
        self.architecture = architecture

    def name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary: as stated, or as many tokens as the tokeniser lists."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        known = len(tokens) if isinstance(tokens, list) and tokens else None
        return self.integer("vocab_size", known)


class HFKeys(Keys):
    """Hugging Face's config.json; architecture is its "architectures"[0]."""

    what = "config.json"

    def __init__(
        self,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        read_vector: ReadVector,
    ):
        super().__init__(metadata, tensors, read_vector)
        self.architecture = architecture
