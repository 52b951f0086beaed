"""How much of the disk streaming a model uses: tokens and plain reads in turns, in one process.

    python tools/stream_share.py DIR --mem 0.5x --rounds 12

A shared disk changes from one second to the next, so a rate taken before and after a run says
little about it. Here every few tokens are held against the plain reads just before and after them.
The bound is that of compare_peers.py: an engine that keeps every byte of the budget but 0.2 GB as
weights, and reads the rest at the rate of plain direct reads of the same size (direct_rate.py).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from pathlib import Path

from direct_rate import direct_rate

from flashllm.flash.format import read_model
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions
from flashllm.sizes import SHARE_OVERHEAD

TOKENS = 3
"""Timed tokens between two series of plain reads; one more before them fills the pipeline."""


CONTEXT = 16
"""Tokens there is room for: keys and values are memory that the bound knows nothing of."""


def main() -> None:
    """Measure a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a flash model larger than the budget")
    parser.add_argument("--mem", default="0.5x")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each series of plain reads")
    options = parser.parse_args()
    largest = max(options.model.glob("units-*"), key=lambda path: path.stat().st_size)
    decoder = load_decoder(options.model, LoadOptions(mem_budget=options.mem, n_ctx=CONTEXT))
    try:
        if not decoder.streamed_bytes:
            raise SystemExit(f"{options.model}: all of it fits in {options.mem}; give less")
        token = 1
        plain = [direct_rate(largest, options.seconds)]
        spent, rates = [], []
        for _ in range(options.rounds):
            sequence = decoder.new_sequence(CONTEXT)
            for timed in (False, True):
                before, start = decoder.traffic, time.perf_counter()
                for _ in range(TOKENS if timed else 1):
                    token = int(decoder.step(sequence, [token])[-1].argmax())
                took = time.perf_counter() - start
            spent.append(took / TOKENS)
            rates.append((decoder.traffic - before).read_bytes / took)
            sequence.close()
            plain.append(direct_rate(largest, options.seconds))
        missing = scanned(options.model) + SHARE_OVERHEAD - (decoder.budget or 0)
        around = [(a + b) / 2 for a, b in itertools.pairwise(plain)]
        shares = [missing / rate / s for rate, s in zip(around, spent, strict=True)]
        rate_shares = [mine / rate for mine, rate in zip(rates, around, strict=True)]
    finally:
        decoder.close()
    print(
        f"{statistics.median(spent):.3f} s a token ({min(spent):.3f} to {max(spent):.3f}), "
        f"{decoder.streamed_bytes / 1e6:.0f} MB of it streamed at "
        f"{statistics.median(rates) / 1e9:.2f} GB/s; plain reads "
        f"{statistics.median(plain) / 1e9:.2f} GB/s ({min(plain) / 1e9:.2f} to "
        f"{max(plain) / 1e9:.2f})\n"
        f"of the bound {statistics.median(shares):.0%} (rounds: "
        f"{', '.join(f'{share:.0%}' for share in shares)}); of the plain rate "
        f"{statistics.median(rate_shares):.0%}"
    )


def scanned(folder: Path) -> int:
    """Bytes of the weights that every token needs: all but a table of which single rows are."""
    model = read_model(folder)
    tables = ["embed", "positions"] if "output" in model.groups else ["positions"]
    return model.unit_bytes - sum(
        int(model.group(name).lengths.sum()) for name in tables if name in model.groups
    )


if __name__ == "__main__":
    main()
