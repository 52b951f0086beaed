"""How byte-level BPE vocabularies cut text into words: GGUF's `tokenizer.ggml.pre` as data.

The names are those of llama.cpp (src/llama-vocab.cpp); the rules are those of the tokenizer.json
files that the models' authors publish, which llama.cpp follows but for details: it composes no
characters (NFC), and cuts Falcon's digits otherwise. An unknown name is refused: a wrong cut gives
wrong ids silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from tokenizers import Regex, normalizers, pre_tokenizers

from flashllm.errors import UnsupportedModel

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _GPT4O.replace(_ENDINGS, "").replace(r"\p{N}{1,3}", r"\p{N}")

Step = Callable[[], pre_tokenizers.PreTokenizer]


def _cut(pattern: str) -> Step:
    """Matches of `pattern` and what lies between them are pieces of their own."""
    return lambda: pre_tokenizers.Split(Regex(pattern), "isolated")


_DIGITS: Step = partial(pre_tokenizers.Digits, individual_digits=True)
_BYTES: Step = partial(pre_tokenizers.ByteLevel, add_prefix_space=False, use_regex=False)
_WORDS: Step = partial(pre_tokenizers.ByteLevel, add_prefix_space=False, use_regex=True)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """One way of cutting text into the words that BPE then merges within.

    steps: each cuts the pieces of the one before; one of them writes bytes in GPT-2's alphabet.
    ignore_merges: a word that is itself a token is taken whole, whatever the merges say. nfc: text
    is composed (Unicode NFC) before anything else. adds_bos: models with this cut expect a
    beginning-of-sequence token where their metadata is silent.
    """

    steps: tuple[Step, ...]
    ignore_merges: bool = False
    nfc: bool = False
    adds_bos: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        """The `tokenizers` component for `nfc`."""
        return normalizers.NFC() if self.nfc else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The `tokenizers` component that takes the steps."""
        return pre_tokenizers.Sequence([step() for step in self.steps])


_DEFAULT = PreTokenizer(
    (
        _cut(r"[\p{P}\$\+<=>\^~\|]+"),
        _cut(_GPT2),
        _cut(r"\p{N}+"),
        _cut(r"[0-9][0-9][0-9]"),
        _BYTES,
    )
)
_STARCODER = PreTokenizer((_DIGITS, _WORDS))
_LLAMA = PreTokenizer((_cut(_LLAMA3), _BYTES), ignore_merges=True, adds_bos=True)
_NEOX = PreTokenizer((_WORDS,), nfc=True)
_QWEN = PreTokenizer((_cut(_QWEN2), _BYTES), nfc=True)
_FALCON = PreTokenizer(
    (
        partial(pre_tokenizers.Punctuation, "contiguous"),
        _WORDS,
        partial(pre_tokenizers.Digits, individual_digits=False),  # after _WORDS: of bytes' names
        _cut(r"[0-9][0-9][0-9]"),
    )
)

PRE_TOKENIZERS = {
    "default": _DEFAULT,
    "gpt-2": PreTokenizer((_WORDS,)),  # OPT
    "phi-2": PreTokenizer((_WORDS,)),
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,  # Granite 3
    "llama-bpe": _LLAMA,
    "llama3": _LLAMA,
    "llama-v3": _LLAMA,
    "falcon3": dataclasses.replace(_LLAMA, adds_bos=False),
    "smaug-bpe": PreTokenizer((_cut(_LLAMA3), _BYTES)),
    "dbrx": PreTokenizer((_cut(_LLAMA3), _BYTES)),  # OLMo 2, Phi-4, Granite 4
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "stablelm2": _QWEN,
    "gpt-4o": PreTokenizer((_cut(_GPT4O), _BYTES)),  # Phi-4-mini
    "tekken": PreTokenizer((_cut(_TEKKEN), _BYTES), ignore_merges=True, adds_bos=True),  # Mistral
    "falcon": _FALCON,
    "olmo": _NEOX,  # GPT-NeoX, Pythia, StableLM
    "mpt": _NEOX,
}


def pre_tokenizer_of(name: str) -> PreTokenizer:
    """The pre-tokeniser called `name` in GGUF. Raises UnsupportedModel, naming what is known."""
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UnsupportedModel(
            f"pre-tokeniser {name!r:.60} is not supported; this version knows: {known}"
        )
    return PRE_TOKENIZERS[name]
