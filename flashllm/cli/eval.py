"""flashllm eval: how well a model predicts a text."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashllm.cli.figures import how_sparse, percent
from flashllm.cli.options import EngineOptions, engine_options, existing_file, json_option
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.generate import score
    from flashllm.generate.loop import Decoder
    from flashllm.model.options import LoadOptions


@click.command("eval")
@click.argument("file", metavar="[FILE]", required=False)
@engine_options
@click.option(
    "--against",
    metavar="reference|GOLDEN",
    help="Compare with the reference backend, or with the predictions stored in a golden file.",
)
@json_option
def command(file: str | None, engine: EngineOptions, against: str | None, as_json: bool) -> None:
    """Measure the perplexity of the text in FILE, read in windows of --ctx-size tokens (512).

    With --against, also how far the predictions are from others: the Kullback-Leibler divergence,
    and how often both find the same token most likely. A golden file brings its own text.

    With --sparse, the same against the model with all its neurons, and what each token computes and
    reads: tokens are then taken one by one, as in a reply.
    """
    golden = existing_file(against) if against and against != "reference" else None
    if (file is None) == (golden is None):
        raise InvalidInput("name a text file to read; only a golden file brings its own text")
    if engine.load.draft is not None:
        raise InvalidInput("a draft guesses what replies say, and eval reads; leave out --draft")
    text = existing_file(file).read_text(encoding="utf-8", errors="replace") if file else ""
    with Report(quiet=as_json) as report:
        results = evaluate(engine, text, golden, against == "reference", report)
    if as_json:
        click.echo(json.dumps(results))
    else:
        click.echo("\n".join(describe(results)))


def evaluate(
    engine: EngineOptions, text: str, golden: Path | None, reference: bool, report: Report
) -> dict[str, Any]:
    """The figures, as --json prints them."""
    from flashllm.cli import opening
    from flashllm.generate import score
    from flashllm.generate.golden import read_golden
    from flashllm.generate.tokenizer import Tokenizer

    path = opening.locate(engine.model, engine.offline, report)
    decoder = load(path, engine.load, report)
    try:
        report.message(f"evaluating {path.name}")
        found: score.Score | score.Comparison
        if golden:
            stored = read_golden(golden, decoder.config.vocab_size)
            found = score.compare_golden(decoder, stored, report.progress)
        else:
            tokens = Tokenizer.from_dir(path).encode(text)
            size = min(engine.load.n_ctx or score.DEFAULT_WINDOW, decoder.config.context_length)
            windows = score.split_windows(len(tokens), size)
            if engine.load.sparse and not reference:
                found = against_dense(engine, decoder, tokens, windows, report)
            elif reference:
                found = against_reference(path, engine, decoder, tokens, windows, report)
            else:
                found = score.perplexity(decoder, tokens, windows, report.progress)
    finally:
        decoder.close()
    how = {
        "backend": engine.load.backend,
        "kv_dtype": decoder.kv_dtype,
        "sparse": engine.load.sparse,
        "window": engine.load.window,
    }
    calibrated = calibration(path) if engine.load.sparse == "predictor" else {}
    return {"model": path.name, **how, **dataclasses.asdict(found), **calibrated}


def against_dense(
    engine: EngineOptions,
    decoder: Decoder,
    tokens: list[int],
    windows: list[tuple[int, int]],
    report: Report,
) -> score.SparseComparison:
    """`decoder`, which runs sparse, compared with itself when it computes all neurons."""
    from flashllm.generate import score
    from flashllm.model.memory import kv_bytes

    contexts = 2 * max((end - start for start, end in windows), default=0)
    if contexts > engine.load.context(decoder.config):  # beside which weights were planned
        kv = kv_bytes(decoder.config, contexts, decoder.kv_dtype)
        decoder.fit(decoder.budget, kv=kv, taken=0, on_progress=report.bytes)
    return score.compare_dense(decoder, tokens, windows, report.progress)


def calibration(path: Path) -> dict[str, Any]:
    """What predictors reached on the text held out from their calibration, means over layers."""
    from flashllm.flash.format import read_model

    sparsity = read_model(path).manifest.sparsity
    if sparsity is None:
        return {}
    names = ("recall", "false_positives")
    return {
        f"calibrated_{name}": statistics.fmean(layer[name] for layer in sparsity["layers"])
        for name in names
    }


def against_reference(
    path: Path,
    engine: EngineOptions,
    decoder: Decoder,
    tokens: list[int],
    windows: list[tuple[int, int]],
    report: Report,
) -> Any:
    """`decoder` compared with the reference backend on the same weights."""
    from flashllm.generate import score

    options = dataclasses.replace(
        engine.load, backend="reference", kv_dtype=None, sparse=None, window=None
    )
    reference = load(path, options, report)
    try:
        report.message("evaluating both (the reference is slow)")
        return score.compare(decoder, reference, tokens, windows, report.progress)
    finally:
        reference.close()


def load(path: Path, options: LoadOptions, report: Report) -> Decoder:
    """The model in `path`."""
    from flashllm.cli import opening
    from flashllm.model.loader import load_decoder

    opening.say_if_compiling(options.backend, report)
    report.stage("loading")
    decoder = load_decoder(path, options, on_progress=report.bytes)
    if decoder.fallback:
        report.message(decoder.fallback)
    return decoder


def describe(results: dict[str, Any]) -> list[str]:
    """The figures for human eyes."""
    how = f"{results['backend']}, keys and values in {results['kv_dtype']}"
    lines = [f"{results['model']} ({how}), {results['tokens']} predictions"]
    if results["sparse"]:
        lines.append(how_sparse(results["sparse"]))
    lines.append(f"perplexity       {results['perplexity']:.4f}")
    if "mean_kl" in results:
        if results["reference_perplexity"]:
            name = "all neurons" if "active_share" in results else "reference"
            lines[-1] += f", {name} {results['reference_perplexity']:.4f}"
        lines.append(
            f"KL divergence    {results['mean_kl']:.3g} mean, {results['max_kl']:.3g} most"
        )
        lines.append(f"top-1 agreement  {100 * results['top1_agreement']:.2f} %")
    if "active_share" in results:
        read = format_size(results["neurons_read_per_token"])
        lines.append(f"active neurons   {100 * results['active_share']:.2f} %")
        lines.append(f"new neurons      {read} read for a token")
    if "calibrated_recall" in results:
        lines.append(
            f"when calibrated  recall {percent(results['calibrated_recall'])}, false positives "
            f"{percent(results['calibrated_false_positives'])}"
        )
    return lines
