"""tokenizer.json, checked and completed, from a Hugging Face folder's tokenizer.json or merges."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from tokenizers import Tokenizer

from flashllm.documents import parse_object
from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.added_tokens import AddedToken
from flashllm.generate.sentencepiece_model import SPACE
from flashllm.generate.tokenizer_json import library_errors

MAX_BYTES = 128 << 20
MAX_VALUES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How tokens are turned into text: TokenizerConfig's fields of these names."""

    kind: str
    byte_fallback: bool = False
    strip_space: bool = False


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """A checked tokenizer.json.

    ids: of every token by its text. controls: of those that no user's text may yield.
    post_processed: it has a post-processor. leading: the special token that this puts before a
    text, if any.
    """

    data: bytes
    spelling: Spelling
    ids: dict[str, int]
    controls: dict[str, int]
    unk_id: int | None
    post_processed: bool
    leading: str | None


def read_vocabulary(
    data: bytes, where: str, added: list[AddedToken], special: set[str], limit: int | None = None
) -> Vocabulary:
    """Check a tokenizer.json and add what the folder's settings say of its tokens.

    added: tokens, with flags that override the file's. special: the texts of tokens that must be
    control tokens. limit: added tokens from this id on are dropped. Truncation, padding and
    dropout, which are for training, are taken out.

    Raises CorruptModel, or UnsupportedModel for models and decoders that flashllm cannot stream.
    """
    document = parse_object(data, where, MAX_BYTES, MAX_VALUES)
    model = document.get("model")
    if not isinstance(model, dict):
        raise CorruptModel(f"{where}: it has no 'model'")
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise UnsupportedModel(
            f"{where}: a vocabulary of kind {kind!r:.40}; this version knows BPE and Unigram"
        )
    spelling = _spelling(document.get("decoder"), where)
    tokens = _model_tokens(model, where)
    table = _added_table(document.get("added_tokens"), where)
    table = {i: entry for i, entry in table.items() if limit is None or i < limit}
    for token in added:
        old = table.get(token.id, {})
        table[token.id] = {**old, **_entry(token), "normalized": old.get("normalized", False)}
    known = {entry["content"]: i for i, entry in table.items()}
    for content in special:
        i = known.get(content, tokens.get(content))
        if i is not None:
            entry = table.get(i) or {**_entry(AddedToken(i, content)), "normalized": False}
            table[i] = {**entry, "special": True}
    document["added_tokens"] = [table[i] for i in sorted(table)]
    document["truncation"] = document["padding"] = None
    if kind == "BPE":
        model["dropout"] = None
    made = json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
    with library_errors(where):
        tokenizer = Tokenizer.from_buffer(made)
        ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    for i, entry in table.items():
        if ids.get(entry["content"]) != i:
            raise CorruptModel(
                f"{where}: added token {i} {entry['content'][:40]!r} has another id in the "
                "vocabulary; the folder's files contradict each other"
            )
    controls = {entry["content"]: i for i, entry in table.items() if entry["special"]}
    unk = model.get("unk_token") if kind == "BPE" else None
    unk_id = ids.get(unk) if isinstance(unk, str) else model.get("unk_id")
    processor = document.get("post_processor")
    return Vocabulary(
        data=made,
        spelling=spelling,
        ids=ids,
        controls=controls,
        unk_id=unk_id,
        post_processed=processor is not None,
        leading=_leading(processor),
    )


def byte_level_json(vocab: bytes, merges: bytes, where: str, prefix_space: bool) -> bytes:
    """A tokenizer.json of GPT-2's vocab.json and merges.txt. Raises CorruptModel."""
    table = parse_object(vocab, f"{where}/vocab.json", MAX_BYTES, MAX_VALUES)
    lines = merges.decode("utf-8", "replace").split("\n")
    pairs = [line.rstrip("\r") for line in lines if line and not line.startswith("#version")]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": True,
        "use_regex": True,
    }
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": table, "merges": pairs},
    }
    return json.dumps(document).encode()


def _model_tokens(model: dict[str, Any], where: str) -> dict[str, int]:
    """The ids of the model's own tokens."""
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        if any(type(i) is not int for i in vocab.values()):
            raise CorruptModel(f"{where}: the vocabulary has an id that is not a number")
        return vocab
    pairs = vocab if isinstance(vocab, list) else [None]
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise CorruptModel(f"{where}: the vocabulary is neither tokens with ids nor with scores")
    return {str(pair[0]): i for i, pair in enumerate(pairs)}


def _added_table(entries: Any, where: str) -> dict[int, dict[str, Any]]:
    """The file's own added tokens by id, flags and all."""
    table: dict[int, dict[str, Any]] = {}
    for entry in entries if isinstance(entries, list) else []:
        token = AddedToken.from_json(entry, where)
        normalized = entry.get("normalized", not token.special)
        if type(normalized) is not bool:
            raise CorruptModel(f"{where}: a flag of added token {token.id} is not true or false")
        table[token.id] = {**_entry(token), "normalized": normalized}
    return table


def _entry(token: AddedToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "content": token.content,
        "special": token.special,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "single_word": token.single_word,
    }


def _spelling(decoder: Any, where: str) -> Spelling:
    """What tokenizer.json's decoder does, if it is one of those that work token by token."""
    steps = decoder.get("decoders") if _type(decoder) == "Sequence" else [decoder]
    steps = steps if isinstance(steps, list) else [None]
    kinds = [_type(step) for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return Spelling("byte-level-bpe")
    strips = False
    for kind, step in zip(kinds, steps, strict=True):
        if kind == "Metaspace":
            strips = step.get("prepend_scheme", "always") != "never"
            known = step.get("replacement") == SPACE and step.get("add_prefix_space", True)
        elif kind == "Replace":
            known = step.get("pattern") == {"String": SPACE} and step.get("content") == " "
        elif kind == "Strip":
            start, stop = step.get("start"), step.get("stop")
            known = step.get("content") == " " and start in (0, 1) and stop == 0
            strips = strips or start == 1
        else:
            known = kind in ("ByteFallback", "Fuse")
        if not known:
            raise UnsupportedModel(
                f"{where}: its tokens are turned into text by {json.dumps(step)[:80]}, which this "
                "version does not know"
            )
    return Spelling("metaspace", "ByteFallback" in kinds, strips)


def _leading(processor: Any) -> str | None:
    """The special token that a post-processor puts first, if it does."""
    inner = processor.get("processors") if _type(processor) == "Sequence" else [processor]
    for step in inner if isinstance(inner, list) else []:
        if _type(step) in ("RobertaProcessing", "BertProcessing"):
            cls = step.get("cls")
            return cls[0] if isinstance(cls, list) and cls and isinstance(cls[0], str) else None
        single = step.get("single") if _type(step) == "TemplateProcessing" else None
        first = single[0] if isinstance(single, list) and single else None
        token = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(token, dict) and isinstance(token.get("id"), str):
            found: str = token["id"]
            return found
    return None


def _type(step: Any) -> str | None:
    kind = step.get("type") if isinstance(step, dict) else None
    return kind if isinstance(kind, str) else None
