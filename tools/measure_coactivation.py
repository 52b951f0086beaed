"""Measure which neurons of a sparse model fire together, by how far apart they are stored.

    python tools/measure_coactivation.py MODEL TEXT FILE.json

MODEL: a flash model of codec row with ReLU, its neurons in the order they are stored in; TEXT: a
file, whose first tokens are run densely. Writes {"lag": [P(neuron n + j fires | n fires) for j =
1 .. 64], "active": share of neurons that fires}, for make_sparse.py: of a layer as active as layers
are in the mean, whose neurons are as correlated as in the mean over layers. (Counted together,
layers of which one is far more active than the rest would show neurons that fire together because
they are of that layer.)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from sparse_coactivation import LAGS, Coactivation, mean, measured

from flashllm.errors import FlashError, InvalidInput
from flashllm.flash.format import read_manifest
from flashllm.generate.tokenizer import Tokenizer
from flashllm.kernels.weights import Floats
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder
from flashllm.model.loader import load_decoder

STEP = 64


def main() -> None:
    """Measure a model and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("target", type=Path, help="a JSON file")
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    try:
        check(options.model)
        text = options.text.read_text(encoding="utf-8", errors="replace")
        ids = Tokenizer.from_dir(options.model).encode(text)[: options.tokens]
        if not ids:
            raise InvalidInput(f"{options.text}: no tokens")
        found = measure(options.model, np.array(ids))
        found.write(options.target)
    except (FlashError, OSError) as error:
        sys.exit(f"measure_coactivation.py: {error}")
    some = ", ".join(f"{j}: {found.lag[j - 1]:.1%}" for j in (1, 2, 4, 8, 16, 32, 64))
    print(f"{len(ids)} tokens, {found.active:.2%} fire; together with one so far away: {some}")


def check(folder: Path) -> None:
    """Raise InvalidInput unless the model's neurons are stored one by one and can be silent."""
    manifest = read_manifest(folder)
    config = ModelConfig.from_json(manifest.config)
    if manifest.codec != "row" or config.ffn.activation != "relu":
        raise InvalidInput(f"{folder}: needs a model of codec row whose activation is ReLU")


def measure(folder: Path, ids: np.ndarray) -> Coactivation:
    """Run the tokens, in texts as long as the model's context, and count."""
    decoder = load_decoder(folder)
    try:
        counts = Counts(decoder)
        context = min(decoder.config.context_length, 512)
        for first in range(0, len(ids), context):
            counts.run(ids[first : first + context])
        return counts.result()
    finally:
        decoder.close()


class Counts:
    """Counts the pairs of neurons that fire in a decoder's steps."""

    def __init__(self, decoder: Decoder):
        self._decoder = decoder
        self._fired = np.zeros((STEP, decoder.config.ffn.size), bool)
        self._pairs = np.zeros((decoder.config.n_layers, 2, LAGS))
        self._active = np.zeros(decoder.config.n_layers)
        self._seen = 0
        decoder.observe(self._look)

    def run(self, ids: np.ndarray) -> None:
        """Run a text of its own."""
        sequence = self._decoder.new_sequence(len(ids))
        try:
            for first in range(0, len(ids), STEP):
                self._decoder.step(sequence, ids[first : first + STEP], logits="none")
        finally:
            sequence.close()

    def result(self) -> Coactivation:
        """What was counted. Raises InvalidInput if nothing, or everything, of a layer fired."""
        active = self._active * len(self._active) / max(1, self._seen)
        if not (active > 0).all() or not (active < 1).all() or not self._pairs.all():
            raise InvalidInput("too few neurons fire together to measure; give a longer text")
        layers = [
            Coactivation(tuple((together / alone).tolist()), float(share))
            for (together, alone), share in zip(self._pairs, active, strict=True)
        ]
        return mean(layers)

    def _look(self, layer: int, first: int, x: Floats, hidden: Floats) -> None:
        """Note a piece of a layer; count when it is whole."""
        rows, count = hidden.shape
        self._fired[:rows, first : first + count] = hidden != 0
        if first + count == self._fired.shape[1]:
            fired = self._fired[:rows]
            self._pairs[layer] += measured(fired)
            self._active[layer] += np.count_nonzero(fired)
            self._seen += fired.size


if __name__ == "__main__":
    main()
