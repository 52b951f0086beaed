"""What predictors lose, by their recall, rank and text: perplexity, agreement, reuse of neurons.

    python -m flashllm convert RELU-FOLDER ROW --codec row --dtype f16
    python tools/sparse_quality.py ROW DIR --text TRAINING --held-out TEXT

Calibrates the model once for each setting below (kept in DIR, so that it can be stopped and goes
on), and prints, on held-out text in windows of 1,000 tokens taken one by one, the perplexity beside
that of all neurons. Then has the model as calibrated by default write 1,000 tokens, with all
neurons and sparse, and says how likely it finds each text, with all neurons and sparse. Last, layer
by layer, what its predictors find of what fires, and what they foresee before attention.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm.convert.neuron_rows import deciding_bias, deciding_rows, row_part
from flashllm.flash.format import read_manifest, read_model, read_small
from flashllm.flash.reader import UnitReader
from flashllm.generate import score
from flashllm.generate.tokenizer import Tokenizer
from flashllm.layers.sparse_ffn import SparseFeedForward
from flashllm.model.decoder import Decoder
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions, Sparse

DEFAULT = "default"
SETTINGS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "recall-0.90": ("--rank", "64", "--recall", "0.90"),
    "recall-0.95": ("--rank", "64", "--recall", "0.95"),
    "recall-0.99": ("--rank", "64", "--recall", "0.99"),
    "rank-32": ("--rank", "32"),
    "rank-64": ("--rank", "64"),
    "rank-128": ("--rank", "128"),
    "rank-256": ("--rank", "256"),
}
WINDOW, GENERATED, PROMPT = 1000, 1000, 20
TEMPERATURE = 0.8
SEEDS = (1, 2, 3)


def main() -> None:
    """Calibrate, evaluate, generate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="to calibrate with")
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=40_000, help="to calibrate with")
    parser.add_argument("--held-tokens", type=int, default=6000, help="of the text held out")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    text = options.held_out.read_text(encoding="utf-8")
    tokens = Tokenizer.from_dir(options.model).encode(text)[: options.held_tokens]
    print(
        "setting       rank      recall  false+  active predicted    dense   sparse     off  top-1"
    )
    for name, flags in SETTINGS.items():
        model = options.target / name
        if not model.exists():
            calibrate(options.model, model, options.text, options.tokens, flags)
        with contextlib.closing(loaded(model, "predictor")) as decoder:
            report(name, model, evaluated(decoder, tokens, WINDOW))
    of_writing(options.target / DEFAULT, tokens)
    of_predictors(options.target / DEFAULT, tokens[:WINDOW])


def calibrate(source: Path, target: Path, text: Path, tokens: int, flags: Sequence[str]) -> None:
    """As a user does."""
    command = [sys.executable, "-m", "flashllm", "calibrate", str(source), str(target)]
    command += ["--text", str(text), "--tokens", str(tokens), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(name: str, model: Path, found: score.SparseComparison) -> None:
    """A line about a setting: perplexities, and how often both find the same token likeliest."""
    layers = read_manifest(model).sparsity["layers"]  # type: ignore[index]
    ranks = [layer["rank"] for layer in layers]
    means = [
        statistics.fmean(layer[key] for layer in layers)
        for key in ("recall", "false_positives", "active", "predicted")
    ]
    told = " ".join(f"{mean:7.2%}" for mean in means)
    print(f"{name:12} {min(ranks):4}-{max(ranks):<4} {told} {_line(found)}", flush=True)


def of_writing(model: Path, tokens: list[int]) -> None:
    """How likely the model finds what it has written, with all neurons and sparse."""
    texts = []
    for sparse in (None, "predictor"):
        with contextlib.closing(loaded(model, sparse)) as decoder:
            texts += [(sparse, seed, written(decoder, tokens, seed)) for seed in SEEDS]
    with contextlib.closing(loaded(model, "predictor")) as decoder:
        for sparse, seed, text in texts:
            found = evaluated(decoder, text, len(text))
            print(f"written with {sparse or 'all neurons':12} seed {seed}: {_line(found)}")


class Watched(SparseFeedForward):
    """A layer's feed-forward, as if its neurons had to be read: compares guesses, choices, truth.

    rows, bias: what decides whether a neuron fires. asked: bool [neurons], a guess, the choice
    after it and what fires, token by token.
    """

    may_read = True
    rows: NDArray[np.float32]
    bias: NDArray[np.float32]
    asked: list[NDArray[np.bool_]]

    def _foreseen(self, rows: int) -> NDArray[np.int64]:
        """Note the guess."""
        ids = super()._foreseen(rows)
        self._note(ids)
        return ids

    def run(self, rows: int) -> None:
        """Note the choice, and what fires."""
        self._note(self._chosen(rows)[0])
        x = self._s.step.ffn_in.values[0, : self.rows.shape[1]]
        self.asked.append(self.rows @ x + self.bias > 0)
        super().run(rows)

    def _note(self, ids: NDArray[np.int64]) -> None:
        chosen = np.zeros(self._neurons, np.bool_)
        chosen[ids] = True
        self.asked.append(chosen)


def of_predictors(model: Path, tokens: list[int]) -> None:
    """How well predictors do on tokens, and how well they foresee from what enters the layer."""
    watched, found = [], read_model(model)
    vectors = read_small(model)
    with (
        contextlib.closing(loaded(model, "predictor")) as decoder,
        UnitReader(found, "pread") as reader,
    ):
        for i, layer in enumerate(decoder._layers):
            assert layer.sparse is not None
            ffn: Watched = layer.sparse.ffn  # type: ignore[assignment]
            ffn.__class__, ffn.asked = Watched, []
            ffn.rows = deciding_rows(reader, i)
            ffn.bias = deciding_bias(vectors, i, row_part(found, i))
            watched.append(ffn)
        sequence = decoder.new_sequence(len(tokens))
        for token in tokens:
            decoder.step(sequence, [token])
        sequence.close()
    print(f"layer  active  recall  false+  chosen  foreseen  in vain, of {len(tokens)} tokens")
    for i, ffn in enumerate(watched):
        guess, choice, fired = (np.array(ffn.asked[j::3]) for j in range(3))
        figures = (
            fired.mean(),
            choice[fired].mean(),
            choice[~fired].mean(),
            choice.mean(),
            guess[choice].mean(),
            (guess & ~choice).sum() / choice.sum(),
        )
        print(f"{i:5}" + "".join(f"{figure:8.2%}" for figure in figures))


def _line(found: score.SparseComparison) -> str:
    dense, own = found.reference_perplexity, found.perplexity
    return f"{dense:8.3f} {own:8.3f} {own / dense - 1:+7.2%} {found.top1_agreement:6.2%}"


def evaluated(decoder: Decoder, tokens: list[int], window: int) -> score.SparseComparison:
    """The model's predictions with the neurons expected to fire beside those with all."""
    windows = score.split_windows(len(tokens), window)
    return score.compare_dense(decoder, tokens, windows)


def loaded(model: Path, sparse: Sparse | None) -> Decoder:
    """The model, all of it in memory."""
    options = LoadOptions(mem_budget=None, sparse=sparse)
    return load_decoder(model, options, step_tokens=64)


def written(decoder: Decoder, tokens: list[int], seed: int) -> list[int]:
    """A few tokens, with what the model writes after them; the end of a text does not stop it."""
    rng = np.random.default_rng(seed)
    begin = 500 * seed
    out = tokens[begin : begin + PROMPT]
    sequence = decoder.new_sequence(PROMPT + GENERATED)
    logits = decoder.step(sequence, out)[-1]
    while len(out) < PROMPT + GENERATED:
        chances = np.exp((logits - logits.max()).astype(np.float64) / TEMPERATURE)
        out.append(int(rng.choice(len(chances), p=chances / chances.sum())))
        logits = decoder.step(sequence, out[-1:])[-1]
    sequence.close()
    return out


if __name__ == "__main__":
    main()
