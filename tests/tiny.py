"""A seeded two-layer Llama written as GGUF in milliseconds: the model every test stands on."""

from __future__ import annotations

import struct
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flashllm.convert import convert

GGML_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "BF16": 30}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "the capital of france is paris and the capital of italy is rome. "
    "a small model says the same thing again and again, because the other thing is another thing. "
    "hello there, what is the time in the other room? user and assistant and system talk there. "
)


def write_gguf(
    path: Path,
    *,
    layers: int = 2,
    hidden: int = 64,
    ffn: int = 96,
    heads: int = 4,
    kv_heads: int = 2,
    vocab: int = 320,
    dtype: str = "F32",
    seed: int = 0,
    tied: bool = True,
    context: int = 128,
    sparsity: float = 0.0,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a tiny Llama to `path` and return it; `metadata` overrides or adds keys.

    dtype is one of GGML_TYPES and holds for every matrix; norms are F32. Of the layers' matrices
    about a share `sparsity` is zero.
    """
    keys: dict[str, Any] = {
        "general.architecture": "llama",
        "general.name": "Tiny Llama",
        "general.license": "apache-2.0",
        "general.alignment": 32,
        "llama.block_count": layers,
        "llama.context_length": context,
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": ffn,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": hidden // heads,
        "llama.vocab_size": vocab,
        **tokenizer_metadata(vocab),
        **(metadata or {}),
    }
    weights = random_weights(layers, hidden, ffn, heads, kv_heads, vocab, seed, tied)
    if sparsity:
        prune(weights, sparsity)
    tensors = {name: (w, dtype if w.ndim == 2 else "F32") for name, w in weights.items()}
    path.write_bytes(gguf_bytes(keys, tensors, keys["general.alignment"]))
    return path


def model_dir(tmp_path: Path, dtype: str = "keep", codec: str = "tile", **options: Any) -> Path:
    """A tiny flash model in a new folder of `tmp_path`.

    dtype and codec are convert's; options are write_gguf's, of which `gguf_dtype` is its dtype.
    """
    gguf_dtype = options.pop("gguf_dtype", "F32")
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    source = write_gguf(folder / "tiny.gguf", dtype=gguf_dtype, **options)
    return convert(source, folder / "tiny.flash", dtype=dtype, codec=codec)


def prune(weights: dict[str, np.ndarray], sparsity: float) -> None:
    """Make about this share of the layers' matrices 0, or -0 as masks leave it."""
    rng = np.random.default_rng(7)
    for name, values in weights.items():
        if name.startswith("blk.") and values.ndim == 2:
            values *= rng.random(values.shape) >= sparsity


def random_weights(
    layers: int,
    hidden: int,
    ffn: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    seed: int = 0,
    tied: bool = True,
) -> dict[str, np.ndarray]:
    """The float32 weights write_gguf writes, by GGUF name: N(0, 1/sqrt(cols)), norms near 1."""
    rng = np.random.default_rng(seed)
    kv = hidden // heads * kv_heads
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (vocab, hidden)}
    for i in range(layers):
        shapes |= {
            f"blk.{i}.attn_norm": (hidden,),
            f"blk.{i}.attn_q": (hidden, hidden),
            f"blk.{i}.attn_k": (kv, hidden),
            f"blk.{i}.attn_v": (kv, hidden),
            f"blk.{i}.attn_output": (hidden, hidden),
            f"blk.{i}.ffn_norm": (hidden,),
            f"blk.{i}.ffn_gate": (ffn, hidden),
            f"blk.{i}.ffn_up": (ffn, hidden),
            f"blk.{i}.ffn_down": (hidden, ffn),
        }
    shapes["output_norm"] = (hidden,)
    if not tied:
        shapes["output"] = (vocab, hidden)
    weights = {}
    for name, shape in shapes.items():
        noise = rng.standard_normal(shape, dtype=np.float32)
        weights[f"{name}.weight"] = (
            np.float32(1) + noise * np.float32(0.1)
            if len(shape) == 1
            else noise / np.float32(np.sqrt(shape[1]))
        )
    return weights


def tokenizer_metadata(vocab: int) -> dict[str, Any]:
    """A byte-level BPE vocabulary of `vocab` tokens: specials, 256 bytes, merges, unused ids."""
    alphabet = byte_alphabet()
    room = vocab - len(SPECIALS) - len(alphabet)
    if room < 0:
        raise ValueError(f"vocab {vocab} is below {len(SPECIALS) + len(alphabet)}")
    merges = train_merges(CORPUS, alphabet, room)
    unused = [f"<|unused_{i}|>" for i in range(room - len(merges))]
    plain = [alphabet[b] for b in range(256)] + [a + b for a, b in merges]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [*SPECIALS, *plain, *unused],
        "tokenizer.ggml.token_type": [3] * len(SPECIALS) + [1] * len(plain) + [5] * len(unused),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": CHATML,
    }


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte (openai/gpt-2, encoder.py)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(hidden)}


def train_merges(corpus: str, alphabet: Mapping[int, str], limit: int) -> list[tuple[str, str]]:
    """The first `limit` byte-pair merges of `corpus`, most frequent first, ties by spelling."""
    words = [[alphabet[b] for b in (" " + word).encode()] for word in corpus.split()]
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [merge_pair(word, best) for word in words]
    return merges


def merge_pair(word: list[str], pair: tuple[str, str]) -> list[str]:
    """`word` with every occurrence of `pair` joined, left to right."""
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def gguf_bytes(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, tuple[np.ndarray, str]],
    alignment: int = 32,
    version: int = 3,
) -> bytes:
    """A whole GGUF file: `tensors` are name -> (float32 array, ggml type)."""
    infos, data = b"", b""
    for name, (array, dtype) in tensors.items():
        dims = array.shape[::-1]
        infos += gguf_string(name) + struct.pack("<I", len(dims))
        infos += struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", GGML_TYPES[dtype], len(data))
        data += pad(ggml_bytes(array, dtype), alignment)
    keys = b"".join(gguf_string(key) + gguf_value(value) for key, value in metadata.items())
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    return pad(head + keys + infos, alignment) + data


def pad(data: bytes, alignment: int) -> bytes:
    """`data` with zeros up to a multiple of `alignment`."""
    return data + bytes(-len(data) % alignment)


def gguf_string(text: str) -> bytes:
    """A GGUF string: 64-bit length, UTF-8."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value: Any) -> bytes:
    """A typed GGUF value; lists are arrays of the type of their first element."""
    if isinstance(value, list):
        items = [gguf_value(item) for item in value]
        kind = items[0][:4] if items else struct.pack("<I", 4)
        if kind == struct.pack("<I", 4):
            kind = struct.pack("<I", 5)  # As other writers do; llama.cpp insists for token types.
        return (
            struct.pack("<I", 9)
            + kind
            + struct.pack("<Q", len(items))
            + b"".join(item[4:] for item in items)
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if value >= 0 else struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + gguf_string(value)


def ggml_bytes(array: np.ndarray, dtype: str) -> bytes:
    """`array` (float32) in a ggml type; block types quantise groups of 32 along the last axis."""
    if dtype == "F32":
        return array.astype("<f4").tobytes()
    if dtype == "F16":
        return array.astype("<f2").tobytes()
    if dtype == "BF16":
        return array.astype(ml_dtypes.bfloat16).tobytes()
    groups = array.reshape(-1, 32).astype(np.float32)
    return {"Q8_0": q8_0, "Q4_0": q4_0, "Q4_1": q4_1}[dtype](groups).tobytes()


def q8_0(groups: np.ndarray) -> np.ndarray:
    """[n, 32] float32 to [n, 34] bytes: f16 scale, 32 int8."""
    scale = (np.abs(groups).max(1, keepdims=True) / 127).astype(np.float16)
    codes = np.rint(groups / nonzero(scale)).clip(-127, 127).astype(np.int8)
    return np.hstack([scale.view(np.uint8), codes.view(np.uint8)])


def q4_0(groups: np.ndarray) -> np.ndarray:
    """[n, 32] float32 to [n, 18] bytes: f16 scale, nibbles of columns i and 16 + i."""
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(1, keepdims=True), 1)
    scale = (extreme / -8).astype(np.float16)
    codes = np.rint(groups / nonzero(scale) + 8).clip(0, 15).astype(np.uint8)
    return np.hstack([scale.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4])


def q4_1(groups: np.ndarray) -> np.ndarray:
    """[n, 32] float32 to [n, 20] bytes: f16 scale, f16 minimum, nibbles as in q4_0."""
    low = groups.min(1, keepdims=True)
    scale = ((groups.max(1, keepdims=True) - low) / 15).astype(np.float16)
    low = low.astype(np.float16)
    codes = np.rint((groups - low) / nonzero(scale)).clip(0, 15).astype(np.uint8)
    return np.hstack([scale.view(np.uint8), low.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4])


def nonzero(scale: np.ndarray) -> np.ndarray:
    """`scale` as float32, with zeros replaced by one so that it can divide."""
    wide = scale.astype(np.float32)
    return np.where(wide == 0, np.float32(1), wide)
