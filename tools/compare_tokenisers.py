"""Compare flashllm's token ids with others' on published vocabularies, and print the differences.

    python tools/compare_tokenisers.py VOCABULARY... [--peer DIR]

A vocabulary is a GGUF file (llama.cpp's repository has many without weights in models/) or a
SentencePiece model. The hard lines of hard_lines.py are tokenised by flashllm and by the judge:
for a SentencePiece model that library, for a GGUF llama.cpp as tools/build_llama_cpp.sh built it
in DIR. Where a GGUF has .inp and .out beside it (texts, and the ids that Hugging Face's tokeniser
gives them), those are judged too. Expect llama.cpp to differ where it does not compose characters
(NFC: qwen2, mpt), and by the order of equal scores in unigram vocabularies.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import sentencepiece
from hard_lines import hard_lines
from make_token_golden import peer_ids

from flashllm.errors import FlashError
from flashllm.formats.gguf import read_gguf
from flashllm.generate.tokenizer import Tokenizer, files_from_gguf, files_from_hf

SEPARATOR = "\n__ggml_vocab_test__\n"


def main() -> None:
    """Compare every vocabulary named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vocabulary", type=Path, nargs="+")
    parser.add_argument("--peer", type=Path, help="where tools/build_llama_cpp.sh built llama.cpp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    lines = [re.sub("[\ud800-\udfff]", "\ufffd", line) for line in hard_lines(options.seed)]
    for file in options.vocabulary:
        try:
            if file.suffix == ".gguf":
                compare_gguf(file, lines, options.peer)
            else:
                compare_model(file, lines)
        except FlashError as error:
            print(f"{file.name}: {error}")


def compare_model(file: Path, lines: list[str]) -> None:
    """A SentencePiece model, as a folder with nothing else."""
    with tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / "tokenizer.model").write_bytes(file.read_bytes())
        ours = Tokenizer.from_files(files_from_hf(Path(temporary)))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(file))
    report(file, "sentencepiece", ours, lines, [judge.encode(line) for line in lines])


def compare_gguf(file: Path, lines: list[str], peer: Path | None) -> None:
    """A GGUF's vocabulary."""
    ours = Tokenizer.from_files(files_from_gguf(read_gguf(file).metadata))
    texts, answers = file.with_name(file.name + ".inp"), file.with_name(file.name + ".out")
    if texts.exists() and answers.exists():
        known = texts.read_bytes().decode().split(SEPARATOR)
        ids = [[int(word) for word in line.split()] for line in answers.read_text().split("\n")]
        report(file, "Hugging Face", ours, known, ids[: len(known)])
    if peer:
        report(file, "llama.cpp", ours, lines, peer_ids(peer, file, lines))


def report(
    file: Path, judge: str, ours: Tokenizer, texts: list[str], theirs: list[list[int]]
) -> None:
    """Print how many texts differ, and the first tokens of three that do."""
    pairs = [(text, ours.encode(text), ids) for text, ids in zip(texts, theirs, strict=True)]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    print(f"{file.name}: {judge} differs on {len(different)} of {len(texts)} texts")
    for text, mine, other in different[:3]:
        at = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), 0)
        spelled = [[ours.token_text(i) for i in ids[at : at + 4]] for ids in (mine, other)]
        print(f"  {text[:40]!a}: {spelled[0]} {judge} {spelled[1]}")


if __name__ == "__main__":
    main()
