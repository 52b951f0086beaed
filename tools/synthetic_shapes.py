"""The shapes of known models: what their config.json says, and their tensors as transformers names
them. make_synthetic.py fills them with random weights.

The numbers are those of the published config.json of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A known model's shape: what config.json says, and its tensors, in the order of use.

    Rows are a multiple of 16 (but for OPT's positions) and columns of 32. arch: llama.cpp's name
    for it; None: it knows none. hf: whether transformers' files have these tensors, too; those of
    experts are merged here as GGUF merges them.
    """

    config: dict[str, Any]
    tensors: Callable[[dict[str, Any]], Iterator[tuple[str, Shape]]]
    arch: str | None
    hf: bool = True

    def with_layers(self, layers: int | None) -> Model:
        """The same with so many layers, if a number is given."""
        if layers is None:
            return self
        return dataclasses.replace(self, config={**self.config, "num_hidden_layers": layers})

    def listed(self) -> list[tuple[str, Shape]]:
        """Every tensor: its name and its shape."""
        return list(self.tensors(self.config))


def llama(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a Llama."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield from attention(layer, c)
        yield f"{layer}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, ffn)
    yield from head(c)


def moe(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a Qwen 3 or OLMoE mixture of experts, those of all experts in one."""
    hidden, ffn, experts = c["hidden_size"], expert_size(c), c["num_experts"]
    shared = c["model_type"] == "qwen3_moe"  # every head is normalised by the same weights
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield from attention(layer, c)
        for name, heads in (("q_norm", "num_attention_heads"), ("k_norm", "num_key_value_heads")):
            yield f"{layer}.self_attn.{name}.weight", (head_dim(c) * (1 if shared else c[heads]),)
        yield f"{layer}.mlp.gate.weight", (experts, hidden)
        yield f"{layer}.mlp.experts.gate_proj.weight", (experts, ffn, hidden)
        yield f"{layer}.mlp.experts.up_proj.weight", (experts, ffn, hidden)
        yield f"{layer}.mlp.experts.down_proj.weight", (experts, hidden, ffn)
    yield from head(c)


def attention(layer: str, c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The norms and the attention of a layer."""
    hidden = c["hidden_size"]
    q, kv = (head_dim(c) * c[f"num_{name}_heads"] for name in ("attention", "key_value"))
    yield f"{layer}.input_layernorm.weight", (hidden,)
    yield f"{layer}.self_attn.q_proj.weight", (q, hidden)
    yield f"{layer}.self_attn.k_proj.weight", (kv, hidden)
    yield f"{layer}.self_attn.v_proj.weight", (kv, hidden)
    yield f"{layer}.self_attn.o_proj.weight", (hidden, q)
    yield f"{layer}.post_attention_layernorm.weight", (hidden,)


def head(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The last norm, and the output matrix if it is not the embedding."""
    yield "model.norm.weight", (c["hidden_size"],)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], c["hidden_size"])


def head_dim(c: dict[str, Any]) -> int:
    """Elements of an attention head."""
    size: int = c.get("head_dim", c["hidden_size"] // c["num_attention_heads"])
    return size


def expert_size(c: dict[str, Any]) -> int:
    """Neurons of an expert."""
    size: int = c.get("moe_intermediate_size", c["intermediate_size"])
    return size


def opt(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The tensors of an OPT."""
    hidden, ffn = c["hidden_size"], c["ffn_dim"]
    yield "model.decoder.embed_tokens.weight", (c["vocab_size"], hidden)
    yield "model.decoder.embed_positions.weight", (c["max_position_embeddings"] + 2, hidden)
    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden, hidden),
        "self_attn.v_proj": (hidden, hidden),
        "self_attn.out_proj": (hidden, hidden),
        "fc1": (ffn, hidden),
        "fc2": (hidden, ffn),
    }
    for i in range(c["num_hidden_layers"]):
        layer = f"model.decoder.layers.{i}"
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            yield f"{layer}.{name}.weight", (hidden,)
            yield f"{layer}.{name}.bias", (hidden,)
        for name, shape in matrices.items():
            yield f"{layer}.{name}.weight", shape
            yield f"{layer}.{name}.bias", shape[:1]
    yield "model.decoder.final_layer_norm.weight", (hidden,)
    yield "model.decoder.final_layer_norm.bias", (hidden,)


def falcon(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a Falcon whose heads share one key and value, as 7B's do."""
    hidden = c["hidden_size"]
    heads = c["num_attention_heads"]
    yield "transformer.word_embeddings.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer = f"transformer.h.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.input_layernorm.bias", (hidden,)
        yield (
            f"{layer}.self_attention.query_key_value.weight",
            ((heads + 2) * (hidden // heads), hidden),
        )
        yield f"{layer}.self_attention.dense.weight", (hidden, hidden)
        yield f"{layer}.mlp.dense_h_to_4h.weight", (4 * hidden, hidden)
        yield f"{layer}.mlp.dense_4h_to_h.weight", (hidden, 4 * hidden)
    yield "transformer.ln_f.weight", (hidden,)
    yield "transformer.ln_f.bias", (hidden,)


def llama_config(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, **other: Any
) -> dict[str, Any]:
    """config.json of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
        **other,
    }


def opt_config(hidden: int, ffn: int, layers: int, heads: int, **other: Any) -> dict[str, Any]:
    """config.json of an OPT."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": hidden,
        "word_embed_proj_dim": hidden,
        "ffn_dim": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16",
        **other,
    }


def falcon_config(hidden: int, layers: int, heads: int, **other: Any) -> dict[str, Any]:
    """config.json of a Falcon of the first architecture: parallel blocks with one norm."""
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 65024,
        "alibi": False,
        "bias": False,
        "multi_query": True,
        "new_decoder_architecture": False,
        "parallel_attn": True,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 11,
        "eos_token_id": 11,
        "torch_dtype": "bfloat16",
        **other,
    }


LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
QWEN_3_MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
}
OLMOE = {
    "architectures": ["OlmoeForCausalLM"],
    "model_type": "olmoe",
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "vocab_size": 50304,
}
TINY_EXPERTS = {"head_dim": 32, "moe_intermediate_size": 64, "num_experts": 16, "vocab_size": 512}

MODELS = {
    "tiny": Model(llama_config(256, 704, 4, 8, 4, vocab_size=1024), llama, "llama"),
    "tiny-opt": Model(opt_config(128, 512, 2, 4, vocab_size=512), opt, None),
    "tiny-falcon": Model(falcon_config(128, 2, 4, vocab_size=512), falcon, None),
    "tiny-moe": Model(
        llama_config(128, 256, 2, 8, 4, **{**QWEN_3_MOE, **TINY_EXPERTS}),
        moe,
        "qwen3moe",
        hf=False,
    ),
    "llama-1b": Model(llama_config(2048, 5632, 22, 32, 4), llama, "llama"),
    "llama-2-7b": Model(llama_config(4096, 11008, 32, 32, 32), llama, "llama"),
    "llama-2-70b": Model(llama_config(8192, 28672, 80, 64, 8), llama, "llama"),
    "llama-3-8b": Model(llama_config(4096, 14336, 32, 32, 8, **LLAMA_3), llama, "llama"),
    "opt-6.7b": Model(opt_config(4096, 16384, 32, 32), opt, None),
    "opt-13b": Model(opt_config(5120, 20480, 40, 40), opt, None),
    "falcon-7b": Model(falcon_config(4544, 32, 71), falcon, None),
    "qwen3-30b-a3b": Model(
        llama_config(2048, 6144, 48, 32, 4, **QWEN_3_MOE), moe, "qwen3moe", hf=False
    ),
    "olmoe-1b-7b": Model(llama_config(2048, 1024, 16, 16, 16, **OLMOE), moe, "olmoe", hf=False),
}
