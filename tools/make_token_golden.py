"""Make tests/data/tokens.jsonl.gz: hard lines and the ids SmolLM2's own tokeniser gives them.

    /tmp/torch/bin/python tools/make_token_golden.py MODEL.gguf --peer DIR

Runs in the environment that tools/make_goldens.py describes. The ids are those of the published
tokeniser (tools/reference_tokenizer.py). Lines with lone surrogates, which no UTF-8 can hold, are
tokenised with each of them replaced by U+FFFD. With --peer, where llama.cpp was built, its ids are
compared and differences recorded as "llama_cpp"; the published tokeniser is followed.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hard_lines import hard_lines
from reference_tokenizer import from_gguf

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "tokens.jsonl.gz"


def main() -> None:
    """Tokenise the lines with both references and store them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--peer", type=Path, help="where tools/build_llama_cpp.sh built llama.cpp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    lines = hard_lines(options.seed)
    texts = [re.sub("[\ud800-\udfff]", "\ufffd", line) for line in lines]
    tokenizer = from_gguf(options.gguf)
    records: list[dict[str, Any]] = [
        {"text": line, "ids": tokenizer.encode(text, add_special_tokens=False).ids}
        for line, text in zip(lines, texts, strict=True)
    ]
    if options.peer:
        for record, ids in zip(records, peer_ids(options.peer, options.gguf, texts), strict=True):
            if ids != record["ids"]:
                record["llama_cpp"] = ids
        report_differences(records, tokenizer.id_to_token)
    write(records)
    count = sum(len(record["ids"]) for record in records)
    print(f"{OUT}: {len(records)} lines, {count} ids, {OUT.stat().st_size:,} bytes")


def peer_ids(peer: Path, vocabulary: Path, texts: list[str]) -> list[list[int]]:
    """The ids that llama.cpp, built in `peer`, gives to `texts`; no control token among them."""
    with tempfile.TemporaryDirectory() as temporary:
        source, out = Path(temporary) / "texts", Path(temporary) / "ids"
        data = [text.encode() for text in texts]
        source.write_bytes(b"".join(struct.pack("<i", len(each)) + each for each in data))
        program = peer / "bin" / "llama_tokens"
        subprocess.run([program, vocabulary, source, out], check=True, stderr=subprocess.DEVNULL)
        numbers = iter(value for (value,) in struct.iter_unpack("<i", out.read_bytes()))
        return [[next(numbers) for _ in range(count)] for count in numbers]


def report_differences(records: list[dict[str, Any]], name: Any) -> None:
    """Print how many lines differ, and which characters the first differing tokens are about."""
    different = [record for record in records if "llama_cpp" in record]
    print(f"llama.cpp differs on {len(different)} of {len(records)} lines")
    where: collections.Counter[str] = collections.Counter()
    for record in different:
        pairs = zip(record["ids"], record["llama_cpp"], strict=False)
        at = next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), 0)
        ours = [name(i) for i in record["ids"][at : at + 4]]
        theirs = [name(i) for i in record["llama_cpp"][at : at + 4]]
        where[f"{ours} llama.cpp {theirs}"] += 1
    for difference, count in where.most_common(12):
        print(f"  {count} x {difference}")


def write(records: list[dict[str, Any]]) -> None:
    """One JSON object a line, compressed without a time stamp: same records, same bytes."""
    lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records)
    with OUT.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(lines.encode())


if __name__ == "__main__":
    main()
