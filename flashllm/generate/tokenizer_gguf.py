"""A flash model's tokeniser files, made from the vocabulary in a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, decoders, models

from flashllm.errors import CorruptModel, UnsupportedModel
from flashllm.generate.added_tokens import AddedToken
from flashllm.generate.gguf_tokens import GGUFTokens, text
from flashllm.generate.pretokenizers import pre_tokenizer_of
from flashllm.generate.sentencepiece_model import (
    BPE,
    SPACE,
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
    between them is tokenised as texts of their own, each with the prefix. Without a prefix that is
    what SentencePiece does with symbols of its own, for which spaces are written U+2581 again.
    """
    unknown = _unknown(tokens)
    prefix = tokens.flag("add_space_prefix", space_prefix)
    texts = tokens.texts if prefix else _own_symbols(tokens)
    model = SentencePieceModel(
        pieces=tuple(
            Piece(content or f"[EMPTY_{i}]", score, _role(tokens, i, unknown))
            for i, (content, score) in enumerate(zip(texts, tokens.scores(), strict=True))
        ),
        algorithm=algorithm,
        byte_fallback=PieceType.BYTE in tokens.types,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=tokens.flag("remove_extra_whitespaces", False),
        charsmap=tokens.charsmap(),
    )
    config = TokenizerConfig(
        kind="sentencepiece",
        bos_id=tokens.special.get("bos"),
        eos_id=tokens.special.get("eos"),
        eos_ids=tokens.ends,
        add_bos=tokens.flag("add_bos_token", add_bos),
        unk_id=unknown,
        added_tokens=_added(tokens) if prefix else (),
    )
    return "tokenizer.model", config, write_model(model)


def _own_symbols(tokens: GGUFTokens) -> list[str]:
    """The texts, with spaces as SentencePiece writes them in symbols of its own."""
    texts = list(tokens.texts)
    taken = set(texts)
    for i in tokens.of_type(PieceType.USER_DEFINED):
        escaped = texts[i].replace(" ", SPACE)
        if escaped not in taken:
            texts[i] = escaped
            taken.add(escaped)
    return texts


def _added(tokens: GGUFTokens) -> tuple[AddedToken, ...]:
    """The tokens that are found before SentencePiece looks, but for plain control tokens."""
    phi3 = tokens.metadata.get("general.architecture") == "phi3"
    kinds = (PieceType.USER_DEFINED, PieceType.CONTROL) if phi3 else (PieceType.USER_DEFINED,)
    return tuple(
        AddedToken(i, tokens.texts[i], special=tokens.types[i] == PieceType.CONTROL, rstrip=phi3)
        for i in tokens.of_type(*kinds)
        if tokens.texts[i] and not (phi3 and tokens.texts[i] in _PHI3_KEEPS_SPACE)
    )


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
    """SentencePiece's type for token i."""
    if i == unknown:
        return PieceType.UNKNOWN
    if tokens.types[i] == PieceType.UNKNOWN or not tokens.texts[i]:
        return PieceType.UNUSED
    return tokens.types[i]


_MAKERS: dict[str, Callable[[GGUFTokens], _Made]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece_bpe,
    "t5": _sentencepiece_unigram,
}
"""How vocabularies are made, by GGUF's `tokenizer.ggml.model`."""
