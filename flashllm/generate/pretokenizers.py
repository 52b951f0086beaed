"""How byte-level BPE vocabularies cut text into words: GGUF's `tokenizer.ggml.pre` as data.

The names and regular expressions are those of llama.cpp (src/llama-vocab.cpp) and of the models'
own tokenizer.json files. An unknown name is refused: a wrong cut gives wrong ids silently.
"""

from __future__ import annotations

import dataclasses

from tokenizers import Regex, normalizers, pre_tokenizers

from flashllm.errors import UnsupportedModel

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into the words that BPE then merges within.

    single_digits: every digit is a word first. patterns are then applied one after another, each
    cutting the pieces of the one before; a match and the text between matches are pieces of their
    own. ignore_merges: a word that is itself a token is taken whole, whatever the merges say.
    nfc: text is composed (Unicode NFC) before anything else.
    """

    patterns: tuple[str, ...]
    single_digits: bool = False
    ignore_merges: bool = False
    nfc: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """The `tokenizers` component for `nfc`."""
        return normalizers.NFC() if self.nfc else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` component that cuts, then writes bytes in GPT-2's alphabet."""
        digits = [pre_tokenizers.Digits(individual_digits=True)] if self.single_digits else []
        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*digits, *cuts, to_bytes])


PRE_TOKENIZERS = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "smollm": PreTokenizer((_GPT2,), single_digits=True),
    "starcoder": PreTokenizer((_GPT2,), single_digits=True),
    "llama-bpe": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "llama3": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
}


def pre_tokenizer_of(name: str) -> PreTokenizer:
    """The pre-tokeniser called `name` in GGUF. Raises UnsupportedModel, naming what is known."""
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModel(
            f"pre-tokeniser {name!r} is not supported; this version knows: {known}"
        )
    return PRE_TOKENIZERS[name]
