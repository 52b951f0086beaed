"""The shape of a model: foreign metadata is translated into this once, by its family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from flashllm.errors import CorruptModel
from flashllm.model.specs import (
    MAX_CONTEXT,
    MAX_WIDTH,
    AttentionSpec,
    BlockSpec,
    FFNSpec,
    LayerKind,
    NormSpec,
    QKNorm,
    RopeSpec,
    boolean,
    positive,
    whole,
)

MAX_LAYERS = 1024
MAX_VOCAB = 1 << 22

_PARTS: dict[str, type] = {
    "norm": NormSpec,
    "attention": AttentionSpec,
    "ffn": FFNSpec,
    "block": BlockSpec,
    "qk_norm": QKNorm,
    "rope": RopeSpec,
    "kinds": LayerKind,
}
"""The fields, of any of these classes, that hold one of these classes."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder needs to know that is not a weight.

    layers[i] is the index in `kinds` of layer i's kind. norm is that of blocks and of the head.
    embed_scale multiplies token vectors; learned_positions adds a vector per position. logit_scale
    multiplies logits; logit_soft_cap c then replaces a logit z by c tanh(z / c).
    """

    family: str
    hidden_size: int
    vocab_size: int
    context_length: int
    norm: NormSpec
    attention: AttentionSpec
    ffn: FFNSpec
    kinds: tuple[LayerKind, ...]
    layers: tuple[int, ...]
    tied_head: bool
    block: BlockSpec = dataclasses.field(default_factory=BlockSpec)
    embed_scale: float = 1.0
    learned_positions: bool = False
    logit_scale: float = 1.0
    logit_soft_cap: float | None = None

    def __post_init__(self) -> None:
        whole("hidden_size", self.hidden_size, MAX_WIDTH)
        whole("vocab_size", self.vocab_size, MAX_VOCAB)
        whole("context_length", self.context_length, MAX_CONTEXT)
        boolean("tied_head", self.tied_head)
        boolean("learned_positions", self.learned_positions)
        positive("embed_scale", self.embed_scale)
        positive("logit_scale", self.logit_scale)
        if self.logit_soft_cap is not None:
            positive("logit_soft_cap", self.logit_soft_cap)
        whole("number of layers", len(self.layers), MAX_LAYERS)
        for index in self.layers:
            whole("kind of a layer", index, len(self.kinds) - 1, least=0)
        for kind in self.kinds:
            if kind.rope is not None and kind.rope.dims > self.attention.head_dim:
                raise CorruptModel(
                    f"model config: rope turns {kind.rope.dims} elements of a head of "
                    f"{self.attention.head_dim}"
                )

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""
        return len(self.layers)

    @property
    def query_size(self) -> int:
        """Elements of all heads' queries together."""
        return self.attention.heads * self.attention.head_dim

    @property
    def kv_size(self) -> int:
        """Elements of all heads' keys together; as many are values."""
        return self.attention.kv_heads * self.attention.head_dim

    def kind_of(self, layer: int) -> LayerKind:
        """The kind of layer number `layer`."""
        return self.kinds[self.layers[layer]]

    def to_json(self) -> dict[str, Any]:
        """This config as the manifest's "config" object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The config of a manifest.

        Raises CorruptModel on missing or unknown keys, or values out of range.
        """
        made: ModelConfig = _build(cls, data, "model config")
        return made


def _build(kind: type, data: Any, where: str) -> Any:
    """An instance of the dataclass `kind` from its JSON object, and those within it."""
    if not isinstance(data, Mapping):
        raise CorruptModel(f"{where}: expected an object, found {data!r:.40}")
    if unknown := sorted(set(data) - {field.name for field in dataclasses.fields(kind)}):
        raise CorruptModel(f"{where}: unknown keys {unknown}; was it written by a newer flashllm?")
    values = {name: _value(name, value, f"{where}, {name}") for name, value in data.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise CorruptModel(f"{where}: {error}") from None


def _value(name: str, value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_value(name, item, where) for item in value)
    if name in _PARTS and value is not None and not isinstance(value, tuple):
        return _build(_PARTS[name], value, where)
    return value
