"""Byte-level BPE in plain Python, as the specification of what the tokeniser library must do."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Any

import tiny

SPACES = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def encode(text: str, metadata: dict[str, Any]) -> list[int]:
    """The ids of `text` by a GGUF's vocabulary, with the pre-tokeniser "smollm"."""
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = metadata["tokenizer.ggml.merges"]
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    alphabet = tiny.byte_alphabet()
    out = []
    for word in words(text):
        symbols = [alphabet[byte] for byte in word.encode()]
        while pairs := [pair for pair in pairwise(symbols) if pair in ranks]:
            symbols = tiny.merge_pair(symbols, min(pairs, key=lambda pair: ranks[pair]))
        out += [ids[symbol] for symbol in symbols if symbol in ids]
    return out


def words(text: str) -> list[str]:
    """Digits one by one, then GPT-2's cut of what lies between them."""
    out, start = [], 0
    for i, character in enumerate(text):
        if kind(character) == "N":
            out += [*gpt2_words(text[start:i]), character]
            start = i + 1
    return out + gpt2_words(text[start:])


def gpt2_words(text: str) -> list[str]:
    """GPT-2's regular expression, by hand: contractions, one space and a run, spaces."""
    out, i = [], 0
    while i < len(text):
        end = i
        contraction = next((c for c in CONTRACTIONS if text.startswith(c, i)), None)
        spaced = text[i] == " " and i + 1 < len(text) and kind(text[i + 1]) != "S"
        if contraction:
            end = i + len(contraction)
        elif spaced or kind(text[i]) != "S":
            end = run_end(text, i + spaced)
        else:
            end = run_end(text, i)
            if end < len(text) and end - i > 1:
                end -= 1  # the last space goes with the word that follows
        out.append(text[i:end])
        i = end
    return out


def run_end(text: str, start: int) -> int:
    end = start
    while end < len(text) and kind(text[end]) == kind(text[start]):
        end += 1
    return end


def kind(character: str) -> str:
    """L letter, N number, S space, O other."""
    if character in SPACES:
        return "S"
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "O"
