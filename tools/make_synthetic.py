"""Write a model of random weights in the shape of a known one: as large, as fast as the disk.

    python tools/make_synthetic.py llama-2-7b DIR            13 GB of float16 in shards
    python tools/make_synthetic.py llama-2-7b DIR --layers 4  its first layers only
    python tools/make_synthetic.py llama-2-70b DIR --format flash --dtype q4
    python tools/make_synthetic.py llama-2-70b FILE --format gguf --dtype q4

--format hf: a Hugging Face folder of float16. flash: a flash model, the same that converting that
folder gives. gguf: for llama.cpp, in Q4_0 (q4), Q4_1 (q4m), Q8_0 (q8) or F16: the same weights as
the flash model of that dtype. All of one shape and seed are one model; the mixtures of experts are
written as GGUF only. The tokeniser knows bytes, and no more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from synthetic_flash import write_flash
from synthetic_gguf import write_gguf
from synthetic_hf import write_hf
from synthetic_shapes import MODELS, Model
from synthetic_weights import Weights

from flashllm.errors import FlashError

SHARD_BYTES = 5_000_000_000


def main() -> None:
    """Write the model asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("target", type=Path, help="a new folder, or GGUF file")
    parser.add_argument("--layers", type=int, help="fewer layers than the model has, or more")
    parser.add_argument("--format", choices=("hf", "flash", "gguf"), default="hf")
    parser.add_argument("--dtype", choices=("f16", "q8", "q4m", "q4"), default="f16")
    parser.add_argument(
        "--codec", choices=("tile", "row", "bitmap"), default="tile", help="of flash models"
    )
    parser.add_argument(
        "--sparsity", type=float, default=0.0, help="share of the weights that is zero, at random"
    )
    parser.add_argument("--pure", action="store_true", help="q4 and q4m: of the head, too")
    parser.add_argument(
        "--shard", type=int, default=SHARD_BYTES, help="bytes of an hf shard at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if complaint := wrong(options):
        parser.error(complaint)
    start = time.perf_counter()
    done = 0
    try:
        for nbytes in write(options, MODELS[options.model].with_layers(options.layers)):
            done += nbytes
            if sys.stderr.isatty():
                print(f"{done / 1e9:.1f} GB", end="\r", file=sys.stderr)
    except (FlashError, OSError) as error:
        sys.exit(f"make_synthetic.py: {error}")
    seconds = time.perf_counter() - start
    print(f"{done / 1e9:.2f} GB in {seconds:.0f} s, {done / 1e9 / seconds:.2f} GB/s")


def wrong(options: argparse.Namespace) -> str | None:
    """What cannot be had of these options, if something cannot."""
    model = MODELS[options.model]
    if options.target.exists():
        return f"{options.target}: exists already; choose another place"
    if options.layers is not None and options.layers < 1:
        return "--layers: a model has at least one"
    if options.format != "gguf" and not model.hf:
        return f"{options.model}: a mixture of experts is written with --format gguf only"
    if options.format == "gguf" and model.arch is None:
        return f"{options.model}: llama.cpp does not run its architecture; use another format"
    if options.format == "hf" and options.dtype != "f16":
        return "--dtype: a Hugging Face folder is float16; use --format flash or gguf"
    if not 0 <= options.sparsity < 1:
        return "--sparsity: 0 to 1"
    if options.format != "flash" and options.codec != "tile":
        return "--codec: only flash models have one"
    return None


def write(options: argparse.Namespace, model: Model) -> Iterator[int]:
    """Write the model; yields bytes as they are written."""
    weights = Weights(options.seed, options.sparsity)
    if options.format == "hf":
        return write_hf(options.target, model, weights, options.shard)
    if options.format == "gguf":
        return write_gguf(options.target, model, weights, options.dtype, options.pure)
    stored = (options.dtype, options.codec, options.pure, 1 - options.sparsity)
    return write_flash(options.target, model, weights, *stored)


if __name__ == "__main__":
    main()
