"""Typed reading of foreign metadata: every value is checked where a family asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.model.config import MAX_LAYERS
from flashllm.model.specs import Activation

ReadVector = Callable[[str], NDArray[np.float32]]

MAX_HEADS = 4096

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "relu2": "relu2",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_accurate": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_python_tanh": "gelu",
}
"""Hugging Face's names (transformers, activations.py) of those we have."""

_OLDER = {
    "hidden_size": "n_embed",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "num_kv_heads": "n_head_kv",
}
"""What the first Falcons call these keys."""


class Keys:
    """Metadata of a checkpoint, of which a key is named in every message.

    architecture: as the checkpoint states it. tensors: the names of the checkpoint's tensors.
    read_vector(name) reads a one-dimensional one.
    """

    what = "metadata"

    def __init__(
        self,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        read_vector: ReadVector,
    ):
        self.architecture = architecture
        self._metadata = metadata
        self.tensors = frozenset(tensors)
        self.read_vector = read_vector

    def name(self, key: str) -> str:
        """The key as the checkpoint spells it."""
        return key

    def get(self, key: str) -> Any:
        """The value of key as it is, None if it is not there."""
        return self._metadata.get(self.name(key))

    def has(self, key: str) -> bool:
        """Whether the key is there, be it as null."""
        return self.name(key) in self._metadata

    def integer(self, key: str, default: int | None = None, most: int = 1 << 62) -> int:
        """A positive whole number, `most` at the most."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            limit = f" up to {most}" if most < 1 << 62 else ""
            raise self.wrong(key, value, f"a positive whole number{limit}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._value(key, default)
        if not _is_number(value):
            raise self.wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A positive, finite number."""
        value = self._value(key, default)
        if not _is_number(value) or value <= 0:
            raise self.wrong(key, value, "a positive number")
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
        """A list of finite numbers."""
        value = self._value(key, None)
        if not isinstance(value, list) or not all(_is_number(item) for item in value):
            raise self.wrong(key, value, "a list of numbers")
        return tuple(float(item) for item in value)

    def window(self, key: str, absent: int | None = None) -> int | None:
        """Tokens of a sliding window, None for none (null or 0); absent: if the key is missing."""
        value = self.get(key) if self.has(key) else absent
        return None if value is None or value == 0 else self.integer(key, absent)

    def cap(self, key: str, absent: float | None = None) -> float | None:
        """Where something is capped, None for nowhere (null or 0); absent: as with window."""
        value = self.get(key) if self.has(key) else absent
        return None if value is None or value == 0 else self.positive(key, absent)

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

    def name(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    @property
    def vocab_size(self) -> int:
        """The size of the vocabulary: as stated, or as many tokens as the tokeniser lists."""
        tokens = self._metadata.get("tokenizer.ggml.tokens")
        known = len(tokens) if isinstance(tokens, list) and tokens else None
        return self.integer("vocab_size", known)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.integer("block_count", most=MAX_LAYERS)

    @property
    def heads(self) -> int:
        """How many heads of queries there are."""
        return self.integer("attention.head_count", most=MAX_HEADS)

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        shared = self.integer("embedding_length") // self.heads
        return self.integer("attention.key_length", max(shared, 1))

    def sliding(self, period: int) -> list[bool]:
        """Which layers slide: as listed, or all but every n-th, n as stated or `period`."""
        listed = self.get("attention.sliding_window_pattern")
        if not isinstance(listed, list):
            period = self.integer("attention.sliding_window_pattern", period)
            return [(i + 1) % period != 0 for i in range(self.layers)]
        if len(listed) != self.layers or not all(isinstance(item, bool) for item in listed):
            raise self.wrong(
                "attention.sliding_window_pattern", listed, f"{self.layers} of true and false"
            )
        return listed


class HFKeys(Keys):
    """Hugging Face's config.json; architecture is its "architectures"[0].

    prefix: what stands before the keys in messages, for an object within config.json.
    """

    what = "config.json"

    def __init__(
        self,
        architecture: str,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        read_vector: ReadVector,
        prefix: str = "",
    ):
        super().__init__(architecture, metadata, tensors, read_vector)
        self._prefix = prefix

    def name(self, key: str) -> str:
        return f"{self._prefix}{key}"

    def has(self, key: str) -> bool:
        return key in self._metadata

    def get(self, key: str) -> Any:
        value = self._metadata.get(key)
        return self._metadata.get(_OLDER[key]) if value is None and key in _OLDER else value

    def inner(self, key: str, defaults: Mapping[str, Any] | None = None) -> HFKeys:
        """The keys of an object within this one, if it is there, and defaults of others."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.wrong(key, value, "an object")
        found, name = {**(defaults or {}), **value}, f"{self.name(key)}."
        return HFKeys(self.architecture, found, self.tensors, self.read_vector, name)

    @property
    def layers(self) -> int:
        """How many layers there are."""
        return self.integer("num_hidden_layers", most=MAX_LAYERS)

    @property
    def heads(self) -> int:
        """How many heads of queries there are."""
        return self.integer("num_attention_heads", most=MAX_HEADS)

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        shared = self.integer("hidden_size") // self.heads
        return self.integer("head_dim", max(shared, 1))

    def activation(self, key: str = "hidden_act", default: str | None = None) -> Activation:
        """The function between the feed-forward's matrices. Raises UnsupportedModel."""
        value = self.text(key, default)
        if value not in ACTIVATIONS:
            raise UnsupportedModel(
                f"activation {value!r:.80} is not supported; {', '.join(ACTIVATIONS)} are"
            )
        return ACTIVATIONS[value]

    def sliding(self, otherwise: Callable[[int], bool]) -> list[bool]:
        """Which layers slide: as layer_types says, or as otherwise(layer) does."""
        listed = self.get("layer_types")
        if listed is None:
            return [otherwise(i) for i in range(self.layers)]
        if not isinstance(listed, list) or len(listed) != self.layers:
            raise self.wrong("layer_types", listed, f"a list of {self.layers}")
        for kind in listed:
            if kind not in ("sliding_attention", "full_attention"):
                raise UnsupportedModel(f"layers of type {kind!r:.80} are not supported")
        return [kind == "sliding_attention" for kind in listed]


def _is_number(value: object) -> bool:
    """Whether value is a number that a float can hold."""
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return abs(value) < 1 << 1000
    return isinstance(value, float) and math.isfinite(value)
