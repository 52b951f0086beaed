"""A flash model's tokeniser files, made from the vocabulary in a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as BPETokenizer

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.pretokenizers import pre_tokenizer_of
from flashllm.generate.special_tokens import END_OF_TURN
from flashllm.generate.tokenizer_config import TokenizerConfig

CONTROL, USER_DEFINED = 3, 4
TOKEN_TYPES = frozenset({1, 2, CONTROL, USER_DEFINED, 5, 6})

ADDS_BOS = frozenset({"llama-bpe", "llama3"})
"""Pre-tokenisers whose models expect a beginning-of-sequence token when the metadata is silent."""


def files_from_gguf(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """The tokeniser's files, by name, from a GGUF's metadata.

    Returns "tokenizer.json" (for the `tokenizers` library), "tokenizer_config.json" (bos_id,
    eos_id, eos_ids, add_bos and their kind) and, if the model has one, "chat_template.jinja".
    A reply ends at the tokens that the metadata calls eos, eot or eom, and at control tokens named
    in END_OF_TURN.

    Raises CorruptModel for a vocabulary that contradicts itself; UnsupportedModel for a kind of
    tokeniser or a pre-tokeniser that flashllm does not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise CorruptModel("GGUF metadata lacks 'tokenizer.ggml.model'; the file has no tokeniser")
    if kind != "gpt2":
        raise UnsupportedModel(f"tokeniser {kind!r} is not supported; this version knows: gpt2")
    pre = _text(metadata, "tokenizer.ggml.pre", "default")
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _types(metadata, len(tokens))
    vocabulary = _vocabulary(tokens)
    merges = _merges(metadata, vocabulary)
    controls = frozenset(i for i, token_type in enumerate(types) if token_type == CONTROL)
    added = [
        AddedToken(tokens[i], special=i in controls, normalized=False)
        for i, token_type in enumerate(types)
        if token_type in (CONTROL, USER_DEFINED) and tokens[i]
    ]
    config = TokenizerConfig(
        kind="byte-level-bpe",
        bos_id=_id(metadata, "bos", len(tokens)),
        eos_id=_id(metadata, "eos", len(tokens)),
        eos_ids=tuple(_end_ids(metadata, tokens, controls)),
        add_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", pre in ADDS_BOS)),
        add_prefix_space=bool(metadata.get("tokenizer.ggml.add_space_prefix", False)),
    )
    files = {
        "tokenizer.json": _tokenizer_json(vocabulary, merges, added, pre),
        "tokenizer_config.json": config.to_bytes(),
    }
    if template := _text(metadata, "tokenizer.chat_template", ""):
        files["chat_template.jinja"] = template.encode("utf-8", "replace")
    return files


def _tokenizer_json(
    vocabulary: dict[str, int], merges: list[tuple[str, str]], added: list[AddedToken], pre: str
) -> bytes:
    rules = pre_tokenizer_of(pre)
    try:
        tokenizer = BPETokenizer(
            models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges)
        )
        tokenizer.pre_tokenizer = rules.pre_tokenizer()
        if (normalizer := rules.normalizer()) is not None:
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(added)
        return tokenizer.to_str().encode()
    except Exception as error:  # the library raises Exception itself
        raise CorruptModel(f"GGUF vocabulary: the tokeniser cannot be built: {error}") from error


def _text(metadata: Mapping[str, object], key: str, default: str) -> str:
    value = metadata.get(key, default)
    if not isinstance(value, str):
        raise CorruptModel(f"GGUF metadata: {key!r} is {type(value).__name__}, expected a string")
    return value


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)) or not values:
        raise CorruptModel(
            f"GGUF metadata: {key!r} is missing or not a list; is the file complete?"
        )
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise CorruptModel(f"GGUF metadata: item {i} of {key!r} is not a string")
    return list(values)


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocabulary[token] != i)
        raise CorruptModel(f"GGUF vocabulary: token {twice[:40]!r} appears twice")
    return vocabulary


def _types(metadata: Mapping[str, object], count: int) -> list[int]:
    values = metadata.get("tokenizer.ggml.token_type")
    if values is None:
        return [1] * count
    try:
        types = [int(value) for value in values]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise CorruptModel("GGUF vocabulary: token types are not a list of numbers") from None
    if len(types) != count:
        raise CorruptModel(f"GGUF vocabulary: {len(types)} token types for {count} tokens")
    if unknown := set(types) - TOKEN_TYPES:
        raise CorruptModel(f"GGUF vocabulary: unknown token type {min(unknown)}")
    return types


def _merges(metadata: Mapping[str, object], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges as pairs, each of known tokens that join into a known token."""
    merges = []
    for i, line in enumerate(_strings(metadata, "tokenizer.ggml.merges")):
        left, space, right = line.partition(" ")
        if not (space and left in vocabulary and right in vocabulary):
            raise CorruptModel(f"GGUF vocabulary: merge {i} {line[:40]!r} is not of two tokens")
        if left + right not in vocabulary:
            raise CorruptModel(f"GGUF vocabulary: merge {i} {line[:40]!r} makes no token")
        merges.append((left, right))
    return merges


def _id(metadata: Mapping[str, object], name: str, count: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if value is None:
        return None
    try:
        token = int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        raise CorruptModel(f"GGUF vocabulary: the id of {name} is not a number") from None
    if not 0 <= token < count:
        raise CorruptModel(f"GGUF vocabulary: {name} is token {token} of {count}")
    return int(token)


def _end_ids(
    metadata: Mapping[str, object], tokens: list[str], controls: frozenset[int]
) -> list[int]:
    ends = {i for i in controls if tokens[i] in END_OF_TURN}
    ends.update(
        i for name in ("eos", "eot", "eom") if (i := _id(metadata, name, len(tokens))) is not None
    )
    return sorted(ends)
