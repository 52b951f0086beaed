"""Places of roles that are rows of a fused tensor, or several tensors."""

from __future__ import annotations

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Place, Slice
from flashllm.model.roles import layer_roles

QKV = ("attn_q", "attn_k", "attn_v")


def stacked(stem: str, roles: tuple[str, ...]) -> dict[str, str | Place]:
    """Roles whose rows follow each other in the tensor `stem`.weight, and biases in `stem`.bias."""

    def place(tensor: str, index: int) -> Place:
        def find(config: ModelConfig, layer: int) -> tuple[Slice, ...]:
            shapes = layer_roles(config)
            first = sum(shapes[role][0] for role in roles[:index])
            return (Slice(tensor.format(i=layer), first, shapes[roles[index]][0]),)

        return find

    weights: dict[str, str | Place] = {
        role: place(f"{stem}.weight", n) for n, role in enumerate(roles)
    }
    return weights | {f"{role}_bias": place(f"{stem}.bias", n) for n, role in enumerate(roles)}


def by_head(stem: str) -> dict[str, str | Place]:
    """Query, key and value in one tensor, head by head.

    For each key head: the queries it serves, then itself, then its value
    (github.com/huggingface/transformers, FalconAttention and GPTNeoXAttention).
    """

    def place(tensor: str, role: str) -> Place:
        def find(config: ModelConfig, layer: int) -> tuple[Slice, ...]:
            a = config.attention
            shared = a.heads // a.kv_heads
            first, heads = {
                "attn_q": (0, shared),
                "attn_k": (shared, 1),
                "attn_v": (shared + 1, 1),
            }[role]
            name, size = tensor.format(i=layer), a.head_dim
            return tuple(
                Slice(name, (group * (shared + 2) + first) * size, heads * size)
                for group in range(a.kv_heads)
            )

        return find

    weights: dict[str, str | Place] = {role: place(f"{stem}.weight", role) for role in QKV}
    return weights | {f"{role}_bias": place(f"{stem}.bias", role) for role in QKV}
