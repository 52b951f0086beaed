"""flashllm's decoding token by token, with the time and the disk traffic of each.

    python tools/flashllm_decode.py MODEL --tokens 5,17,3 --threads 2 --mem 2115000000

One step for each token, from an empty KV cache, as llama_decode.cpp does. Prints a line of JSON
when the model is loaded and after each token. compare_peers.py runs it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from decode_events import Meter

from flashllm.model.decoder import Decoder
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions


def main() -> None:
    """Decode the tokens asked for."""
    meter = Meter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", required=True, help="ids, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mem", type=int, help="bytes; all of the model in memory without it")
    options = parser.parse_args()
    tokens = [int(token) for token in options.tokens.split(",")]
    decoder = load(options.model, options.mem, len(tokens), options.threads)
    sequence = decoder.new_sequence(len(tokens))
    meter.tell("loaded")
    for token in tokens:
        decoder.step(sequence, [token], logits="last")
        meter.tell("token")
    sequence.close()
    decoder.close()


def load(model: Path, mem_budget: int | None, n_ctx: int, threads: int) -> Decoder:
    """The decoder of the model in folder `model`, within mem_budget bytes for the whole process."""
    return load_decoder(model, LoadOptions(mem_budget=mem_budget, n_ctx=n_ctx, threads=threads))


if __name__ == "__main__":
    main()
