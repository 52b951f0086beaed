"""SentencePiece models trained on the spot, and the forms in which checkpoints carry them."""

from __future__ import annotations

import functools
import gzip
import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from flashllm.generate.sentencepiece_model import BPE, SentencePieceModel, read_model

DATA = Path(__file__).resolve().parent.parent / "data"

COMMON: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 900,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "control_symbols": ["<|user|>", "<|end|>"],
}
RECIPES: dict[str, dict[str, Any]] = {
    "bpe": {},
    "bpe without prefix": {"add_dummy_prefix": False},
    "unigram": {"model_type": "unigram"},
    "unigram with rules": {
        "model_type": "unigram",
        "byte_fallback": False,
        "remove_extra_whitespaces": True,
        "normalization_rule_tsv": None,
    },
}
RULES = {
    "Ａ": "A",
    "Ｂ": "B",
    "１": "1",
    "½": "half",
    "ﬁ": "fi",
    "e\u0301": "é",
    "\t": " ",
    "\n": " ",
}
"""What the recipe with rules makes of these characters."""


@functools.cache
def lines() -> tuple[str, ...]:
    """The hard lines that the golden holds; lone surrogates are U+FFFD."""
    with gzip.open(DATA / "tokens.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    data = [text.encode("utf-16-le", "surrogatepass") for text in texts]
    return tuple(each.decode("utf-16-le", "replace") for each in data)


@functools.cache
def train(recipe: str) -> bytes:
    """A tokenizer.model made by one of RECIPES: the same each time, in 20 ms."""
    return train_with(**RECIPES[recipe])


def train_with(**changes: Any) -> bytes:
    """A tokenizer.model made by COMMON with `changes`."""
    options = {**COMMON, **changes}
    text = (DATA / "english.txt").read_text(encoding="utf-8").splitlines()
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        if "normalization_rule_tsv" in options:
            del options["normalization_rule_name"]
            file = Path(folder) / "rules.tsv"
            rules = (f"{_codes(old)}\t{_codes(new)}\n" for old, new in RULES.items())
            file.write_text("".join(rules), encoding="utf-8")
            options["normalization_rule_tsv"] = str(file)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*text, *lines()[:12]]),
            model_writer=out,
            character_coverage=0.98,
            hard_vocab_limit=False,
            minloglevel=2,
            num_threads=1,
            **options,
        )
    return out.getvalue()


def metadata(model: SentencePieceModel) -> dict[str, Any]:
    """The model as GGUF has it (github.com/ggml-org/llama.cpp, conversion/base.py and t5.py)."""
    unigram = {} if model.algorithm == BPE else {"remove_extra_whitespaces": None}
    keys: dict[str, Any] = {
        "model": "llama" if model.algorithm == BPE else "t5",
        "tokens": [piece.text for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [int(piece.type) for piece in model.pieces],
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_space_prefix": model.add_dummy_prefix,
    }
    if unigram:
        keys["remove_extra_whitespaces"] = model.remove_extra_whitespaces
        keys["precompiled_charsmap"] = list(model.charsmap)
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


def tokenizer_json(model: SentencePieceModel, *, legacy: bool = True) -> dict[str, Any]:
    """The model as tokenizer.json, the way transformers converts Llama's.

    legacy: a space is put before every piece of text between control tokens, not the first only.
    """
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    rank = {piece.text: -piece.score for piece in model.pieces if piece.type in (1, 4)}
    halves = [
        (rank[text], text[:i], text[i:])
        for text in rank
        for i in range(1, len(text))
        if text[:i] in rank and text[i:] in rank
    ]
    merges = [[left, right] for _, left, right in sorted(halves)]
    prepend = [{"type": "Prepend", "prepend": "▁"}] if legacy and model.add_dummy_prefix else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    normalizer = {"type": "Sequence", "normalizers": [*prepend, replace]}
    controls = [i for i, piece in enumerate(model.pieces) if piece.type in (2, 3)]
    return {
        "version": "1.0",
        "added_tokens": [added(i, model.pieces[i].text, special=True) for i in controls],
        "normalizer": normalizer if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "post_processor": template("<s>"),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def added(i: int, content: str, **flags: bool) -> dict[str, Any]:
    """An added token as tokenizer.json has it."""
    names = ("special", "lstrip", "rstrip", "single_word", "normalized")
    return {"id": i, "content": content, **{name: flags.get(name, False) for name in names}}


def template(first: str) -> dict[str, Any]:
    """A post-processor that puts the token `first` before a text."""
    start, text = (
        {"SpecialToken": {"id": first, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    )
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text],
        "special_tokens": {first: {"id": first, "ids": [1], "tokens": [first]}},
    }


def write_folder(folder: Path, files: dict[str, Any]) -> Path:
    """A folder of these files: bytes as they are, anything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def processor(data: bytes) -> sentencepiece.SentencePieceProcessor:
    """The public library on a tokenizer.model."""
    made = sentencepiece.SentencePieceProcessor()
    made.LoadFromSerializedProto(data)
    return made


def model(recipe: str) -> SentencePieceModel:
    """The model made by one of RECIPES, as plain data."""
    return read_model(train(recipe))


def _codes(text: Iterable[str]) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
