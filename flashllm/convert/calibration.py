"""Fitting a model's predictors: run it densely over a text, note what fires, fit layer by layer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashllm.convert import calibration_scratch
from flashllm.convert.activity import ActivityFile, Recorder, Shape, Tokens
from flashllm.convert.calibration_scratch import Scratch
from flashllm.convert.calibration_text import Windows, read_windows, text_identity
from flashllm.convert.layer_calibration import Aims, LayerCalibration, calibrate_layer
from flashllm.convert.neuron_rows import deciding_bias, deciding_rows, row_part
from flashllm.convert.predictor_fit import Sample
from flashllm.convert.rewriting import rewrite
from flashllm.errors import InvalidInput, UnsupportedModel
from flashllm.flash.format import FlashModel, read_model, read_small
from flashllm.flash.reader import UnitReader
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.config import ModelConfig
from flashllm.model.loader import load_decoder
from flashllm.model.options import LoadOptions

HELD_EVERY = 10
"""Of so many windows one is held out; of a single window, its last fifth."""

SPARSE_ACTIVATIONS = ("relu", "relu2")
"""Those that leave a neuron at exactly 0."""

VERSION = 1
"""Changes when what an earlier calibration kept is of no use any more."""

STEPS = 1000
"""What the fitting of a layer counts as in its progress."""

OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A calibrated model: its folder, what was found for each layer, the text's tokens."""

    path: Path
    layers: tuple[LayerCalibration, ...]
    text_tokens: int


def calibrate(
    source: Path,
    target: Path,
    text: Sequence[Path],
    *,
    tokens: int = 20_000,
    recall: float = 0.97,
    rank: int | None = None,
    order: str = "coactivation",
    options: LoadOptions | None = None,
    restart: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Calibration:
    """Write the model in folder `source` to the new folder `target`, with predictors.

    The model, of codec `row` and with a ReLU, runs over about `tokens` tokens of the files `text`.
    A predictor finds a share of `recall` of the neurons that fire, on held-out text; rank: of all
    layers, a multiple of 32, by default what costs each layer least. order: "coactivation" stores
    neurons that fire together near each other, wherever that saves reads; "none" leaves them.
    options: how to run the model.

    Interrupted, what is done is kept beside `target`, and the next call goes on with it; restart
    drops it. on_message announces each stage, on_progress(done, total) counts it, and may raise to
    stop.

    Raises InvalidInput, ModelNotFound, UnsupportedModel, CorruptModel, OutOfBudget, DiskFull,
    ModelIOError, EngineError.
    """
    aims = Aims(recall, rank, order)
    if tokens < 1:
        raise InvalidInput(f"{tokens} tokens of text; choose more")
    if target.exists():
        raise InvalidInput(f"{target}: exists already; choose another place, or remove it first")
    model = read_model(source)
    config = checked_config(model)
    aims.check_rank(min(config.ffn.size, config.hidden_size))
    report = on_progress or (lambda done, total: None)
    say = on_message or (lambda text: None)
    windows = read_windows(text, Tokenizer.from_dir(source), tokens, config.context_length)
    shape = Shape(config.n_layers, sum(map(len, windows)), config.hidden_size, config.ffn.size)
    with calibration_scratch.opened(target, restart=restart) as scratch:
        scratch.check_room(shape, model.unit_bytes)
        with scratch.activity(shape) as activity:
            identity = {"version": VERSION, **text_identity(model, windows)}
            done = scratch.windows_done(identity)
            if done < len(windows):
                say(f"running the model over {shape.tokens} tokens of text")
                _collect(model, windows, done, activity, scratch, options, identity, report)
            say(f"fitting predictors to {shape.layers} layers")
            layers = _fit_layers(model, windows, activity, scratch, aims, identity, report)
        say(f"writing {target}")
        rewrite(
            model,
            target,
            orders=[layer.order for layer in layers],
            predictors=[layer.predictor for layer in layers],
            sparsity=sparsity(layers, shape.tokens, order),
            on_progress=report,
        )
        scratch.remove()
    return Calibration(target, tuple(layers), shape.tokens)


def checked_config(model: FlashModel) -> ModelConfig:
    """The config of a model that predictors are of use for. Raises UnsupportedModel."""
    config = ModelConfig.from_json(model.manifest.config)
    if config.ffn.activation not in SPARSE_ACTIVATIONS:
        raise UnsupportedModel(
            f"{model.path}: its activation, {config.ffn.activation}, leaves no neuron silent; only "
            "models with a ReLU have neurons to predict"
        )
    for layer in range(config.n_layers):
        row_part(model, layer)
    return config


def split(windows: Windows) -> tuple[Tokens, list[Tokens]]:
    """Tokens to fit to, and runs of consecutive tokens that are held out: int64, as collected."""
    ends = np.cumsum([len(window) for window in windows])
    runs = [np.arange(end - len(window), end) for window, end in zip(windows, ends, strict=True)]
    if len(runs) == 1:
        cut = len(runs[0]) * 4 // 5
        return runs[0][:cut], [runs[0][cut:]]
    held = set(range(len(runs) - 1, -1, -HELD_EVERY))
    train = [run for i, run in enumerate(runs) if i not in held]
    return np.concatenate(train), [runs[i] for i in sorted(held)]


def sparsity(layers: Sequence[LayerCalibration], tokens: int, order: str) -> dict[str, Any]:
    """The manifest's object `sparsity`: see docs/format.md."""
    new = np.mean([layer.curve.new for layer in layers], axis=0)
    resident = np.mean([layer.curve.resident for layer in layers], axis=0)
    return {
        "text_tokens": tokens,
        "order": order,
        "layers": [layer.to_json() for layer in layers],
        "window": new.tolist(),
        "resident": resident.tolist(),
    }


def _collect(
    model: FlashModel,
    windows: Windows,
    done: int,
    activity: ActivityFile,
    scratch: Scratch,
    options: LoadOptions | None,
    identity: dict[str, Any],
    report: OnProgress,
) -> None:
    """Run the model over the windows that were not done, noting what its layers read and fire."""
    longest = max(map(len, windows))
    asked = dataclasses.replace(options or LoadOptions(), n_ctx=longest)
    total = sum(map(len, windows))
    decoder = load_decoder(model.path, asked, step_tokens=longest)
    try:
        recorder = Recorder(activity)
        decoder.observe(recorder)
        sequence = decoder.new_sequence(longest)
        try:
            at = sum(map(len, windows[:done]))
            for number, window in enumerate(windows[done:], done + 1):
                sequence.truncate(0)
                recorder.begin(at)
                decoder.step(sequence, window, logits="none")
                at += len(window)
                activity.sync()
                scratch.note_windows(identity, number)
                report(at, total)
        finally:
            sequence.close()
    finally:
        decoder.close()


def _fit_layers(
    model: FlashModel,
    windows: Windows,
    activity: ActivityFile,
    scratch: Scratch,
    aims: Aims,
    identity: dict[str, Any],
    report: OnProgress,
) -> list[LayerCalibration]:
    """What was found for each layer, now or by an earlier call with the same aims."""
    wanted = json.dumps({**identity, **dataclasses.asdict(aims)}, sort_keys=True)
    vectors = read_small(model.path)
    train, held = split(windows)
    count = activity.shape.layers
    found = []
    with UnitReader(model, "pread") as reader:
        for i in range(count):
            part = row_part(model, i)
            layer = _saved(scratch, i, wanted, activity.shape)
            if layer is None:
                sample = Sample(
                    activity.layer(i),
                    deciding_rows(reader, i),
                    deciding_bias(vectors, i, part),
                    train,
                    np.concatenate(held),
                )

                def tick(share: float, i: int = i) -> None:
                    report(int((i + share) * STEPS), count * STEPS)

                layer = calibrate_layer(sample, held, part, aims, tick)
                scratch.save_layer(i, wanted, layer.arrays(), layer.figures())
            found.append(layer)
            report((i + 1) * STEPS, count * STEPS)
    return found


def _saved(scratch: Scratch, i: int, identity: str, shape: Shape) -> LayerCalibration | None:
    """What an earlier call found for a layer, if it is whole."""
    stored = scratch.load_layer(i, identity)
    if stored is None:
        return None
    try:
        layer = LayerCalibration.from_saved(*stored)
    except (KeyError, TypeError):
        return None
    p = layer.predictor
    shapes = (p.down.shape, p.up.shape, p.bias.shape)
    whole = ((p.rank, shape.hidden), (shape.neurons, p.rank), (shape.neurons,))
    return layer if shapes == whole else None
