"""What pruning loses: perplexity and agreement by method, share and dtype, beside plain dtypes.

    python -m flashllm convert SMOLLM2.gguf DENSE --dtype f16
    python tools/prune_quality.py DENSE DIR --text CALIBRATION --held-out TEXT

Prunes DENSE as a user does for every method and share (kept in DIR, so that it can be stopped and
goes on), requantises it plainly to q8 and q4 if the checkpoint is given (--checkpoint), and prints
for each the bits a weight of the layers takes and, on held-out text in windows of 512, perplexity
and how often the likeliest token is DENSE's.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from flashllm.flash.format import FlashModel, MatrixPart, read_model
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

METHODS = ("magnitude", "wanda", "sparsegpt")
SHARES = ("0.3", "0.5", "0.6")
MORE = {
    "wanda-2:4": ("--method", "wanda", "--pattern", "2:4"),
    "sparsegpt-2:4": ("--method", "sparsegpt", "--pattern", "2:4"),
    "sparsegpt-0.5-q8": ("--method", "sparsegpt", "--sparsity", "0.5", "--dtype", "q8"),
    "sparsegpt-0.5-q4": ("--method", "sparsegpt", "--sparsity", "0.5", "--dtype", "q4"),
}
WINDOW = 512


def main() -> None:
    """Prune, evaluate, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="to prune with")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, help="what DENSE was converted from")
    parser.add_argument("--tokens", default="32768", help="to prune with")
    parser.add_argument("--held-tokens", type=int, default=10_000, help="of the text held out")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    text = options.held_out.read_text(encoding="utf-8")
    tokens = Tokenizer.from_dir(options.model).encode(text)[: options.held_tokens]
    print(f"{'model':22} bits/weight  perplexity   top-1", flush=True)
    likeliest = report("f16", options.model, tokens, None)
    for dtype in ("q8", "q4") if options.checkpoint else ():
        made = options.target / dtype
        if not made.exists():
            flashllm("convert", str(options.checkpoint), str(made), "--dtype", dtype)
        report(dtype, made, tokens, likeliest)
    settings = {
        f"{method}-{share}": ("--method", method, "--sparsity", share)
        for share in SHARES
        for method in METHODS
    }
    for name, flags in {**settings, **MORE}.items():
        made = options.target / name.replace(":", "of")
        if not made.exists():
            with_text = ("--text", str(options.text), "--tokens", options.tokens)
            flashllm("prune", str(options.model), str(made), *flags, *with_text)
        report(name, made, tokens, likeliest)


def flashllm(*arguments: str) -> None:
    """As a user does."""
    command = [sys.executable, "-m", "flashllm", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def report(name: str, path: Path, tokens: list[int], likeliest: np.ndarray | None) -> np.ndarray:
    """Print a line about a model; returns its likeliest tokens."""
    found, lost, count = [], 0.0, 0
    with contextlib.closing(load_decoder(path, LoadOptions(None, WINDOW))) as decoder:
        sequence = decoder.new_sequence(WINDOW)
        for first in range(0, len(tokens) - 1, WINDOW):
            window = tokens[first : first + WINDOW]
            sequence.truncate(0)
            logits = decoder.step(sequence, window, logits="all")[: len(window) - 1]
            found.append(logits.argmax(axis=1))
            wide = logits.astype(np.float64)
            wide -= wide.max(axis=1, keepdims=True)
            own = wide[np.arange(len(wide)), window[1:]]
            lost += float((np.log(np.exp(wide).sum(axis=1)) - own).sum())
            count += len(wide)
    top = np.concatenate(found)
    agreed = "" if likeliest is None else f"{(top == likeliest).mean():8.1%}"
    bits = layer_bits(read_model(path))
    print(f"{name:22} {bits:11.2f} {math.exp(lost / count):11.3f} {agreed}", flush=True)
    return top


def layer_bits(model: FlashModel) -> float:
    """Bits of files that a weight of the layers takes."""
    nbytes = weights = 0
    for name, group in model.groups.items():
        if not name.startswith("layers."):
            continue
        nbytes += int(group.lengths.sum())
        for part in group.parts:
            if isinstance(part, MatrixPart):
                weights += part.rows * part.cols
            else:
                weights += len(part.dtypes) * part.neurons * part.width
    return 8 * nbytes / weights


if __name__ == "__main__":
    main()
