"""A flash model's tokeniser files, made from the vocabulary in a GGUF's metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, decoders, models

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.added_tokens import AddedToken
from flashllm.generate.gguf_tokens import GGUFTokens, text
from flashllm.generate.pretokenizers import pre_tokenizer_of
from flashllm.generate.sentencepiece_model import (
    BPE,
    UNIGRAM,
    Piece,
    PieceType,
    SentencePieceModel,
    write_model,
)
from flashllm.generate.template import MAX_TEMPLATE_BYTES
from flashllm.generate.tokenizer_config import FILE, TokenizerConfig
from flashllm.generate.tokenizer_engine import open_engine
from flashllm.generate.tokenizer_json import library_errors

WHERE = "GGUF vocabulary"

_Made = tuple[str, TokenizerConfig, bytes]


def files_from_gguf(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """The tokeniser's files, by name, from a GGUF's metadata.

    Returns the vocabulary ("tokenizer.json" or "tokenizer.model"), "tokenizer_config.json" and, if
    the model has one, "chat_template.jinja". A reply ends at the tokens that the metadata calls
    eos, eot or eom, and at tokens named in special_tokens.END_OF_TURN.

    Raises CorruptModel for a vocabulary that contradicts itself; UnsupportedModel for a kind of
    tokeniser or a pre-tokeniser that flashllm does not know.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise CorruptModel("GGUF metadata lacks 'tokenizer.ggml.model'; the file has no tokeniser")
    if not isinstance(kind, str) or kind not in _MAKERS:
        raise UnsupportedModel(
            f"tokeniser {kind!r:.60} is not supported; this version knows: {', '.join(_MAKERS)}"
        )
    name, config, vocabulary = _MAKERS[kind](GGUFTokens.read(metadata))
    open_engine(config, WHERE, vocabulary, WHERE)  # or it had better not be written
    files = {name: vocabulary, FILE: config.to_bytes()}
    if template := text(metadata, "tokenizer.chat_template", "").encode("utf-8", "replace"):
        if len(template) > MAX_TEMPLATE_BYTES:
            raise CorruptModel(
                f"GGUF metadata: a chat template over {MAX_TEMPLATE_BYTES >> 20} MiB"
            )
        files["chat_template.jinja"] = template
    return files


def _byte_level(tokens: GGUFTokens) -> _Made:
    rules = pre_tokenizer_of(text(tokens.metadata, "tokenizer.ggml.pre", "default"))
    config = TokenizerConfig(
        kind="byte-level-bpe",
        bos_id=tokens.special.get("bos"),
        eos_id=tokens.special.get("eos"),
        eos_ids=tokens.ends,
        add_bos=tokens.flag("add_bos_token", rules.adds_bos),
        add_prefix_space=tokens.flag("add_space_prefix", False),
    )
    vocabulary = {token: i for i, token in enumerate(tokens.texts)}
    merges = tokens.merges()
    added = [
        LibraryToken(
            tokens.texts[i], special=tokens.types[i] == PieceType.CONTROL, normalized=False
        )
        for i in tokens.of_type(PieceType.CONTROL, PieceType.USER_DEFINED)
        if tokens.texts[i]
    ]
    with library_errors(f"{WHERE}: the tokeniser cannot be built"):
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rules.ignore_merges)
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = rules.pre_tokenizer()
        if (normalizer := rules.normalizer()) is not None:
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_tokens(added)
        return "tokenizer.json", config, tokenizer.to_str().encode()


def _sentencepiece_bpe(tokens: GGUFTokens) -> _Made:
    """Llama 2's kind. Its metadata lists the tokens, not the rules, which are the same for all."""
    return _sentencepiece(tokens, BPE, add_bos=True, space_prefix=True)


def _sentencepiece_unigram(tokens: GGUFTokens) -> _Made:
    return _sentencepiece(tokens, UNIGRAM, add_bos=False, space_prefix=False)


def _sentencepiece(
    tokens: GGUFTokens, algorithm: int, *, add_bos: bool, space_prefix: bool
) -> _Made:
    """A SentencePiece vocabulary; add_bos and space_prefix hold where the metadata is silent.

    Tokens of type USER_DEFINED were added to the vocabulary by Hugging Face's tokenizers
    (github.com/ggml-org/llama.cpp, conversion/base.py), by whose rules they are found: the text
    between them is tokenised as texts of their own.
    """
    unknown = _unknown(tokens)
    pieces = [
        Piece(content or f"[EMPTY_{i}]", score, _role(tokens, i, unknown))
        for i, (content, score) in enumerate(zip(tokens.texts, tokens.scores(), strict=True))
    ]
    model = SentencePieceModel(
        pieces=tuple(pieces),
        algorithm=algorithm,
        byte_fallback=PieceType.BYTE in tokens.types,
        add_dummy_prefix=tokens.flag("add_space_prefix", space_prefix),
        remove_extra_whitespaces=tokens.flag("remove_extra_whitespaces", False),
        charsmap=tokens.charsmap(),
    )
    added = [AddedToken(i, pieces[i].text) for i in tokens.of_type(PieceType.USER_DEFINED)]
    if tokens.metadata.get("general.architecture") == "phi3":
        added = [dataclasses.replace(token, rstrip=True) for token in added] + [
            AddedToken(i, pieces[i].text, special=True, rstrip=True)
            for i in tokens.of_type(PieceType.CONTROL)
            if pieces[i].text not in _PHI3_KEEPS_SPACE
        ]
    config = TokenizerConfig(
        kind="sentencepiece",
        bos_id=tokens.special.get("bos"),
        eos_id=tokens.special.get("eos"),
        eos_ids=tokens.ends,
        add_bos=tokens.flag("add_bos_token", add_bos),
        unk_id=unknown,
        added_tokens=tuple(added),
    )
    return "tokenizer.model", config, write_model(model)


_PHI3_KEEPS_SPACE = frozenset({"<s>", "<unk>", "<|endoftext|>"})
"""Phi-3's other control tokens swallow the white space after them, of which GGUF says nothing."""


def _unknown(tokens: GGUFTokens) -> int:
    """The one token of what the vocabulary cannot spell."""
    found = tokens.special.get("unknown")
    if found is None:
        found = next(iter(tokens.of_type(PieceType.UNKNOWN)), None)
    if found is None:
        raise CorruptModel(f"{WHERE}: no token is the unknown token")
    return found


def _role(tokens: GGUFTokens, i: int, unknown: int) -> int:
    """SentencePiece's type for token i: what is found before it looks, it never makes."""
    if i == unknown:
        return PieceType.UNKNOWN
    kind = tokens.types[i]
    if kind in (PieceType.USER_DEFINED, PieceType.UNKNOWN) or not tokens.texts[i]:
        return PieceType.UNUSED
    return kind


_MAKERS: dict[str, Callable[[GGUFTokens], _Made]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
"""How vocabularies are made, by GGUF's `tokenizer.ggml.model`."""
