"""SmolLM2's tokeniser as its authors publish it, over the vocabulary in a GGUF: the judge of ids.

The published tokenizer.json (HuggingFaceTB/SmolLM2-135M-Instruct) says: no normaliser; every digit
on its own, then GPT-2's byte-level words; BPE without prefix or suffix. Control tokens written in a
text are ordinary text here. Shares no code with flashllm.
"""

from __future__ import annotations

from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTROL = 3


def from_gguf(path: Path) -> Tokenizer:
    """The tokeniser of the SmolLM2 file at `path`."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    tokenizer.encode_special_tokens = True
    return tokenizer
