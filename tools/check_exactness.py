"""Check that a model gives the same logits, bit by bit, under any memory budget.

    python tools/check_exactness.py MODEL --prompt 100 --decode 100
    python tools/check_exactness.py DIR --budgets inf,0.5x,floor --io direct --threads 2

MODEL is a name in the store or a flash model's folder. Reads --prompt tokens of a text at once,
then --decode more one by one, once with everything in memory, then for every budget, io mode and
number of threads: all logits must be the same. Exits with 1 if any differ. A budget of "0.5x" is
half of the weights and 0.2 GB, and "floor" the least that works.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

import xxhash

from flashllm import api
from flashllm.errors import FlashError, OutOfBudget
from flashllm.generate.tokenizer import Tokenizer
from flashllm.hub import store
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

IO_MODES = ("direct", "pread", "mmap")


def main() -> int:
    """Run all cases; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--prompt", type=int, default=100)
    parser.add_argument("--decode", type=int, default=100)
    parser.add_argument("--budgets", default="inf,1.2x,0.75x,0.5x,0.25x,floor")
    parser.add_argument("--io", default=",".join(IO_MODES))
    parser.add_argument("--threads", default="1,2")
    options = parser.parse_args()
    folder = store.find(options.model)
    text = options.text.read_text(encoding="utf-8")
    count = options.prompt + options.decode
    tokens = Tokenizer.from_dir(folder).encode(text)[:count]
    if len(tokens) < count:
        parser.error(f"{options.text} has only {len(tokens)} tokens")
    cases = list(
        itertools.product(
            options.budgets.split(","), options.io.split(","), options.threads.split(",")
        )
    )
    floor = api.plan(folder, mem_budget=1, n_ctx=count).smallest_budget
    expected = run(folder, LoadOptions(None, count), tokens, options.prompt)[0]
    print(
        f"{folder.name}: {options.prompt} tokens at once, {options.decode} one by one; {expected}"
    )
    wrong = 0
    for budget, io, threads in cases:
        name = {"inf": None, "floor": floor}.get(budget, budget)
        load = LoadOptions(name, count, int(threads), io=io)  # type: ignore[arg-type]
        start = time.perf_counter()
        try:
            found, told = run(folder, load, tokens, options.prompt)
        except OutOfBudget as error:
            print(f"{budget:>6} {io:>6} {threads} thread(s)  does not fit: {error}", flush=True)
            continue
        wrong += found != expected
        verdict = "the same" if found == expected else "DIFFERENT"
        seconds = time.perf_counter() - start
        print(
            f"{budget:>6} {io:>6} {threads} thread(s)  {verdict}  {told}, {seconds:.1f} s",
            flush=True,
        )
    print(f"{wrong} of {len(cases)} differ")
    return 1 if wrong else 0


def run(folder: Path, load: LoadOptions, tokens: list[int], prompt: int) -> tuple[str, str]:
    """xxh3 of all logits, and what memory held."""
    decoder = load_decoder(folder, load)
    try:
        hasher = xxhash.xxh3_64()
        sequence = decoder.new_sequence(len(tokens))
        hasher.update(decoder.step(sequence, tokens[:prompt], logits="all"))
        for token in tokens[prompt:]:
            hasher.update(decoder.step(sequence, [token]))
        sequence.close()
        traffic = decoder.traffic
        held = f"{decoder.resident_bytes / 1e6:.0f} MB of weights held"
        return hasher.hexdigest(), f"{held}, {traffic.read_bytes / 1e6:.0f} MB read"
    finally:
        decoder.close()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FlashError as error:
        sys.exit(f"check_exactness: {error}")
