"""Write a checkpoint of random weights in the shape of a known model: as large, and as fast.

    python tools/make_synthetic.py llama-2-7b DIR            13 GB of float16 in shards
    python tools/make_synthetic.py llama-2-7b DIR --layers 4  its first layers only

A Hugging Face folder: config.json, safetensors with an index, and a tokeniser of bytes. The weights
of a matrix are normal, of variance 1 / columns, so that activations stay finite; they repeat one
random block, from another place in every row, so that writing costs what the disk costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SHARD_BYTES = 5_000_000_000
BLOCK = (1 << 23) + 4099  # weights that repeat; no row length divides it
PIECE = 1 << 22  # weights written at once
SYNC_BYTES = 256 << 20

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A known model's shape: what config.json says, and its tensors, in the order of use."""

    config: dict[str, Any]
    tensors: Callable[[dict[str, Any]], Iterator[tuple[str, Shape]]]
    layers_key: str = "num_hidden_layers"


def llama(c: dict[str, Any]) -> Iterator[tuple[str, Shape]]:
    """The tensors of a Llama, as transformers names them."""
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (kv, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (kv, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.up_proj.weight", (ffn, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)


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


def llama_config(
    hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, **other: Any
) -> Any:
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


def opt_config(hidden: int, ffn: int, layers: int, heads: int) -> Any:
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
    }


LLAMA_3 = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
MODELS = {
    "tiny": Model(llama_config(256, 704, 4, 8, 4, vocab_size=1000), llama),
    "llama-1b": Model(llama_config(2048, 5632, 22, 32, 4), llama),
    "llama-2-7b": Model(llama_config(4096, 11008, 32, 32, 32), llama),
    "llama-2-70b": Model(llama_config(8192, 28672, 80, 64, 8), llama),
    "llama-3-8b": Model(llama_config(4096, 14336, 32, 32, 8, **LLAMA_3), llama),
    "opt-6.7b": Model(opt_config(4096, 16384, 32, 32), opt),
}


def main() -> None:
    """Write the checkpoint asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has, or more")
    parser.add_argument("--format", choices=WRITERS, default="hf", help="default: hf")
    parser.add_argument("--shard", type=int, default=SHARD_BYTES, help="bytes of a shard at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = MODELS[options.model]
    config = dict(model.config)
    if options.layers:
        config[model.layers_key] = options.layers
    start = time.perf_counter()
    nbytes = WRITERS[options.format](options, config, list(model.tensors(config)))
    seconds = time.perf_counter() - start
    print(f"{nbytes / 1e9:.2f} GB in {seconds:.0f} s, {nbytes / 1e9 / seconds:.2f} GB/s")


def write_hf(
    options: argparse.Namespace, config: dict[str, Any], tensors: list[tuple[str, Shape]]
) -> int:
    """A Hugging Face folder of float16; returns the bytes of its weights."""
    folder: Path = options.folder
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    write_tokenizer(folder, config)
    shards = split(tensors, options.shard)
    noise = np.random.default_rng(options.seed).standard_normal(BLOCK, dtype=np.float32)
    total = sum(2 * int(np.prod(shape)) for _, shape in tensors)
    done, weight_map = 0, {}
    for number, held in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb", buffering=0) as file:
            file.write(safetensors_header(held))
            for tensor, shape in held:
                weight_map[tensor] = name
                for nbytes in write_tensor(file, tensor, shape, noise):
                    done += nbytes
                    report(done, total)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return total


WRITERS = {"hf": write_hf}
"""What writes a checkpoint in a format: (options, config, tensors) to bytes written."""


def split(tensors: list[tuple[str, Shape]], limit: int) -> list[list[tuple[str, Shape]]]:
    """Runs of tensors below `limit` bytes, at least one each."""
    shards: list[list[tuple[str, Shape]]] = []
    taken = limit
    for name, shape in tensors:
        nbytes = 2 * int(np.prod(shape))
        if taken + nbytes > limit:
            shards.append([])
            taken = 0
        shards[-1].append((name, shape))
        taken += nbytes
    return shards


def safetensors_header(tensors: list[tuple[str, Shape]]) -> bytes:
    """The header of float16 tensors (github.com/huggingface/safetensors, README)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        begin, end = end, end + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_tensor(
    file: IO[bytes], name: str, shape: Shape, noise: npt.NDArray[np.float32]
) -> Iterator[int]:
    """Write one tensor; yields the bytes of each piece."""
    if len(shape) == 1:
        values = noise[: shape[0]] * np.float32(0.02)
        if name.endswith("norm.weight"):
            values = values + np.float32(1)
        yield file.write(values.astype(np.float16).tobytes())
        return
    block = (noise / np.float32(np.sqrt(shape[-1]))).astype(np.float16)
    left, place = int(np.prod(shape)), sum(name.encode()) * 7919 % BLOCK
    unsynced = 0
    while left:
        count = min(left, PIECE, BLOCK - place)
        nbytes = file.write(block[place : place + count].data)
        left, place = left - count, (place + count) % BLOCK
        unsynced += nbytes
        if unsynced >= SYNC_BYTES or not left:  # leave the page cache as it was
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            unsynced = 0
        yield nbytes


def write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """A tokeniser of 256 bytes and three special tokens."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def report(done: int, total: int) -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"{done / 1e9:.1f} of {total / 1e9:.1f} GB", end=end, file=sys.stderr)


if __name__ == "__main__":
    main()
