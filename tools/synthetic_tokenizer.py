"""The tokeniser of synthetic models: 256 bytes, three special tokens and one merge."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIALS = ["<unk>", "<s>", "</s>"]
MERGE = ("Ġ", "t")  # llama.cpp refuses a vocabulary without any
TOKENS = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "".join(MERGE)]


def write_hf(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, [MERGE]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def add_to_gguf(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Add the same to a GGUF's keys, with unused tokens up to `vocab`."""
    unused = vocab - len(TOKENS)
    kinds = [gguf.TokenType.CONTROL] * len(SPECIALS)
    kinds += [gguf.TokenType.NORMAL] * (len(TOKENS) - len(SPECIALS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*TOKENS, *(f"<unused_{i}>" for i in range(unused))])
    writer.add_token_types([*kinds, *[gguf.TokenType.UNUSED] * unused])
    writer.add_token_merges([" ".join(MERGE)])
    writer.add_unk_token_id(SPECIALS.index("<unk>"))
    writer.add_bos_token_id(SPECIALS.index("<s>"))
    writer.add_eos_token_id(SPECIALS.index("</s>"))
    writer.add_add_bos_token(False)
