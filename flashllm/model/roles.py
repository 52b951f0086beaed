"""The tensors of a model, by role: what each is called inside flashllm, and its shape."""

from __future__ import annotations

from flashllm.model.config import ModelConfig

Shape = tuple[int, ...]

ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_out")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")


def roles(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor the model needs, in the order of use: (rows, cols) or (size,).

    Tensors of a layer are called "layers.3.attn_q"; a bias is called as its matrix or norm, with
    "_bias" at the end.
    """
    hidden = config.hidden_size
    found: dict[str, Shape] = {"embed": (config.vocab_size, hidden)}
    if config.learned_positions:
        found["positions"] = (config.context_length, hidden)
    for i in range(config.n_layers):
        found |= {f"layers.{i}.{role}": shape for role, shape in layer_roles(config).items()}
    found |= _norm(config, "output_norm")
    if not config.tied_head:
        found["output"] = (config.vocab_size, hidden)
    return found


def layer_roles(config: ModelConfig) -> dict[str, Shape]:
    """The tensors of one layer, in the order of use."""
    return {**_attention(config), **_feed_forward(config)}


def _attention(config: ModelConfig) -> dict[str, Shape]:
    a, hidden = config.attention, config.hidden_size
    sizes = {"attn_q": config.query_size, "attn_k": config.kv_size, "attn_v": config.kv_size}
    found = _norm(config, "attn_norm") if config.block.pre_norm else {}
    for role, size in sizes.items():
        found[role] = (size, hidden)
        if a.qkv_bias:
            found[f"{role}_bias"] = (size,)
    if a.qk_norm:
        for role in ("attn_q", "attn_k"):
            size = a.head_dim if a.qk_norm.span == "shared" else sizes[role]
            found[f"{role}_norm"] = (size,)
            if a.qk_norm.norm.bias:
                found[f"{role}_norm_bias"] = (size,)
    found["attn_out"] = (hidden, config.query_size)
    if a.out_bias:
        found["attn_out_bias"] = (hidden,)
    return found | (_norm(config, "attn_post_norm") if config.block.post_norm else {})


def _feed_forward(config: ModelConfig) -> dict[str, Shape]:
    ffn, block, hidden = config.ffn, config.block, config.hidden_size
    own_norm = block.pre_norm and not block.shared_norm
    found = _norm(config, "ffn_norm") if own_norm else {}
    for role in FEED_FORWARD:
        if role != "ffn_gate" or ffn.gated:
            shape = (hidden, ffn.size) if role == "ffn_down" else (ffn.size, hidden)
            found[role] = shape
            if ffn.bias:
                found[f"{role}_bias"] = shape[:1]
    return found | (_norm(config, "ffn_post_norm") if block.post_norm else {})


def _norm(config: ModelConfig, role: str) -> dict[str, Shape]:
    shape: Shape = (config.hidden_size,)
    return {role: shape, f"{role}_bias": shape} if config.norm.bias else {role: shape}
