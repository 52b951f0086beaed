"""Token ids of the real model's tokeniser on hard lines: scripts, emoji, code, broken UTF-8."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flashllm.generate.tokenizer import Tokenizer, files_from_hf

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(data: Path) -> list[dict[str, Any]]:
    """Each line ("text") and the published tokeniser's "ids"; see tools/make_token_golden.py."""
    with gzip.open(data / "tokens.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> Tokenizer:
    return Tokenizer.from_dir(model_path)


def test_ids_equal_the_published_tokenisers(
    tokenizer: Tokenizer, records: list[dict[str, Any]]
) -> None:
    assert len(records) >= 1000
    wrong = [r["text"] for r in records if tokenizer.encode(r["text"]) != r["ids"]]
    assert wrong == []


def test_ids_from_a_hugging_face_folder_are_the_same(
    model_path: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    known = json.loads((model_path / "tokenizer.json").read_bytes())
    # As the authors' tokenizer.json has it; see tools/reference_tokenizer.py.
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps = [{"type": "Digits", "individual_digits": True}, {**words, "use_regex": True}]
    published = {**known, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(published))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = Tokenizer.from_files(files_from_hf(tmp_path))
    assert [r["text"] for r in records if tokenizer.encode(r["text"]) != r["ids"]] == []


def test_text_comes_back_from_its_ids(tokenizer: Tokenizer, records: list[dict[str, Any]]) -> None:
    # This vocabulary lacks tokens for bytes that begin rare or impossible characters.
    spelled = {tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)}
    lost = {byte for byte in range(256) if bytes([byte]) not in spelled}
    for record in records:
        text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in record["text"])
        if lost.isdisjoint(text.encode()):
            assert tokenizer.decode(record["ids"]) == text
