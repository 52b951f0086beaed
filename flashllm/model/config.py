"""The shape of a model: foreign metadata is translated into this once, by its family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from flashllm.errors import CorruptModel

RopeStyle = Literal["interleaved", "half"]
Activation = Literal["silu", "gelu", "relu"]

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_VOCAB = 1 << 22


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder needs to know that is not a weight.

    rope_style says which elements of a head rotate together: "interleaved" pairs (2i, 2i+1), as
    GGUF stores the Llama family; "half" pairs (i, i + head_dim / 2), as Hugging Face does.
    """

    family: str
    hidden_size: int
    ffn_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rope_style: RopeStyle
    norm_eps: float
    tied_head: bool
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        for name, limit in (
            ("hidden_size", MAX_WIDTH),
            ("ffn_size", MAX_WIDTH),
            ("n_layers", MAX_LAYERS),
            ("n_heads", MAX_WIDTH),
            ("n_kv_heads", MAX_WIDTH),
            ("head_dim", 1024),
            ("vocab_size", MAX_VOCAB),
            ("context_length", 1 << 24),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= limit:
                raise CorruptModel(f"model config: {name} is {value!r}, expected 1 to {limit}")
        for name in ("rope_theta", "norm_eps"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise CorruptModel(f"model config: {name} is {value!r}, expected a positive number")
        if self.n_heads % self.n_kv_heads:
            raise CorruptModel(
                f"model config: {self.n_heads} heads cannot share {self.n_kv_heads} key/value heads"
            )
        if self.head_dim % 2:
            raise CorruptModel(f"model config: head_dim {self.head_dim} is odd, RoPE rotates pairs")
        if self.rope_style not in ("interleaved", "half"):
            raise CorruptModel(f"model config: unknown rope_style {self.rope_style!r}")
        if self.activation not in ("silu", "gelu", "relu"):
            raise CorruptModel(f"model config: unknown activation {self.activation!r}")

    def to_json(self) -> dict[str, Any]:
        """This config as the manifest's "config" object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelConfig:
        """The config of a manifest.

        Raises CorruptModel on missing or unknown keys, or values out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise CorruptModel(
                f"model config: unknown keys {unknown}; was it written by a newer flashllm?"
            )
        try:
            return cls(**data)
        except TypeError as error:
            raise CorruptModel(f"model config: {error}") from None
