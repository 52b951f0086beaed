"""A flash model pruned: layer after layer, each on what the pruned ones before it give."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from flashllm import machine
from flashllm.convert.calibration_text import Windows, read_windows, text_identity
from flashllm.convert.conversion import created_by
from flashllm.convert.copying import copied_units
from flashllm.convert.layer_runner import read_units
from flashllm.convert.loss import Loss
from flashllm.convert.matrices import matrices, packed
from flashllm.convert.plan import plan_groups
from flashllm.convert.pruning_methods import METHODS, Inputs, Pattern, prune
from flashllm.convert.rewriting import copy_files
from flashllm.convert.text_flow import TextFlow, feed_forwards
from flashllm.errors import InvalidInput, OutOfBudget, UnsupportedModel
from flashllm.flash.codecs import Bytes
from flashllm.flash.format import FlashModel, read_model, read_small
from flashllm.flash.layout import BITMAP_SCALE_BYTES
from flashllm.flash.manifest import SMALL_FILE
from flashllm.flash.parts import MatrixPart, Part
from flashllm.flash.reader import UnitReader
from flashllm.flash.units_file import GroupPlan, Notes, units_bytes
from flashllm.flash.writer import ModelWriter
from flashllm.generate.tokenizer import Tokenizer
from flashllm.model.config import ModelConfig
from flashllm.model.memory import FIXED_BYTES
from flashllm.model.options import LoadOptions
from flashllm.model.roles import ATTENTION, FEED_FORWARD
from flashllm.sizes import format_size

VERSION = 1
"""Changes when what an interrupted pruning left is of no use any more."""

ALREADY = 0.005
"""A matrix whose share of zeros is at most this much below what is asked for is pruned already."""

MATRIX_STEPS = 20
"""What pruning a matrix counts as in the progress, where a window of text counts as 1."""

OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model: its folder, the share of its layers' weights that is zero, tokens of text,
    and how many matrices were pruned already.
    """

    path: Path
    sparsity: float
    text_tokens: int
    already: int


def prune_model(
    source: Path,
    target: Path,
    *,
    pattern: Pattern,
    method: str = "wanda",
    text: Sequence[Path] = (),
    tokens: int = 32_768,
    dtype: str = "keep",
    options: LoadOptions | None = None,
    restart: bool = False,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
) -> Pruned:
    """Write the flash model in folder `source` to the new folder `target`, pruned.

    The matrices of attention and feed-forward become zero as far as `pattern` says, by one of
    METHODS; all but "magnitude" need text, of which the model reads about `tokens` tokens, layer by
    layer: what a layer reads comes from the pruned ones before it. Matrices that have as many zeros
    already stay as they are. dtype "keep" leaves dtypes as they are where bitmaps can have them
    (f16, bf16, q8, q4), f32 becoming f16 and q4m q4; else it is one of these. options: memory and
    threads to use.

    One layer is in memory at a time, and what the text is on its way. Interrupted, the next call
    with the same arguments goes on. on_message announces each stage, on_progress(done, total)
    counts it, and may raise to stop. Raises InvalidInput, ModelNotFound, UnsupportedModel,
    CorruptModel, OutOfBudget, DiskFull, ModelIOError.
    """
    if method not in METHODS:
        raise InvalidInput(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    if dtype not in ("keep", *BITMAP_SCALE_BYTES):
        raise InvalidInput(f"dtype {dtype!r}: choose keep, {', '.join(BITMAP_SCALE_BYTES)}")
    if method != "magnitude" and not text:
        raise InvalidInput(f"{method} needs text that is like what the model will read (--text)")
    model = read_model(source)
    config = ModelConfig.from_json(model.manifest.config)
    asked = options or LoadOptions()
    windows: Windows = []
    if method != "magnitude":
        tokenizer = Tokenizer.from_dir(source)
        windows = read_windows(text, tokenizer, tokens, config.context_length)
    plans = _plans(model, config, dtype, 1 - pattern.sparsity)
    _check_memory(model, config, method, windows, asked)
    settings = {"method": method, "sparsity": pattern.sparsity, "group": pattern.group}
    identity: dict[str, Any] = {
        "prune": settings,
        "dtype": dtype,
        "version": VERSION,
        **text_identity(model, windows),
    }
    say = on_message or (lambda text: None)
    with ModelWriter(target, identity=identity, restart=restart, say=say) as writer:
        writer.check_room(units_bytes(plans))
        copy_files(model, writer)
        writer.add_file(SMALL_FILE, safetensors.numpy.save(read_small(model.path)))
        threads = asked.threads or machine.cpu().usable_cores
        way = (method, pattern)
        work = _Work(model, config, plans, writer, way, windows, threads, on_progress)
        say(f"pruning {config.n_layers} layers by {method}")
        work.run()
        text_tokens = sum(map(len, windows))
        manifest = dataclasses.replace(
            model.manifest,
            created_by=created_by(),
            codec="bitmap" if any(plan.varies for plan in plans) else "tile",
            dtype=model.manifest.dtype if dtype == "keep" else dtype,
            groups=writer.groups,
            files=writer.files,
            loss=work.loss.report(),
            source={**model.manifest.source, "pruned": {**settings, "text_tokens": text_tokens}},
        )
        path = writer.publish(manifest)
    return Pruned(path, work.zeros / max(1, work.weights), text_tokens, work.already)


class _Work:
    """The pruning of one model. zeros, weights, already: of all its layers; loss: of weights."""

    def __init__(
        self,
        model: FlashModel,
        config: ModelConfig,
        plans: Sequence[GroupPlan],
        writer: ModelWriter,
        way: tuple[str, Pattern],
        windows: Windows,
        threads: int,
        on_progress: OnProgress | None,
    ):
        """way: method and pattern."""
        self.loss = Loss()
        self.zeros = self.weights = self.already = 0
        self._model = model
        self._config = config
        self._plans = plans
        self._writer = writer
        self._method, self._pattern = way
        self._windows = windows
        self._threads = threads
        self._report = on_progress or (lambda done, total: None)
        self._steps = 0
        self._total = config.n_layers * (2 * len(windows) + MATRIX_STEPS * len(_roles(config)))

    def run(self) -> None:
        """Write every group that is not there yet."""
        notes = self._writer.begin(self._plans)
        for noted in notes:
            self._take(noted)
        done = len(notes)
        with UnitReader(self._model) as reader, contextlib.ExitStack() as stack:
            flow = None
            if self._windows:
                flow = TextFlow(
                    self._model, self._config, self._plans, self._windows, reader, self._threads
                )
                stack.enter_context(flow)
            for number, plan in enumerate(self._plans):
                layer = _layer_of(plan.name)
                if layer is not None and plan.name.endswith(".attn"):
                    self._layer(
                        layer, self._plans[number : number + 2], done - number, reader, flow
                    )
                elif layer is None and number >= done:
                    group = self._model.group(plan.name)
                    self._writer.add_group(copied_units(group, reader))

    def _layer(
        self,
        layer: int,
        plans: Sequence[GroupPlan],
        done: int,
        reader: UnitReader,
        flow: TextFlow | None,
    ) -> None:
        """Write the groups of a layer, of which the first `done` are written, and pass it."""
        if done >= len(plans):
            made = {plan.name: self._writer.written_units(plan.name) for plan in plans}
            self._tick(len(self._windows) + MATRIX_STEPS * len(_roles(self._config)))
        else:
            held = {plan.name: read_units(reader, self._model.group(plan.name)) for plan in plans}
            inputs: dict[str, Inputs] = {}
            if flow:
                inputs = flow.inputs(layer, held, self._method == "sparsegpt", self._tick)
            made = {}
            for number, plan in enumerate(plans):
                made[plan.name], noted = self._pruned(plan, held.pop(plan.name), inputs)
                if number >= done:
                    self._take(noted)
                    self._writer.add_group(iter(made[plan.name]), functools.partial(dict, noted))
        if flow:
            flow.advance(layer, made, self._tick)

    def _pruned(
        self, plan: GroupPlan, units: Sequence[Bytes], inputs: Mapping[str, Inputs]
    ) -> tuple[list[Bytes], Notes]:
        """The units of a group, pruned, and what is to be noted of them."""
        loss, made = Loss(), []
        zeros = weights = already = 0
        for part in plan.parts:
            theirs = self._model.group(plan.name).part(part.role)
            own = units[theirs.first_unit : theirs.first_unit + theirs.units]
            before, after = matrices(theirs, own), []
            for role, matrix in zip(_roles_of(part), before, strict=True):
                if (
                    np.count_nonzero(matrix == 0)
                    >= (self._pattern.sparsity - ALREADY) * matrix.size
                ):
                    already += 1
                    after.append(matrix)
                else:
                    after.append(prune(self._method, matrix, inputs.get(role), self._pattern))
                zeros += int(np.count_nonzero(after[-1] == 0))
                weights += matrix.size
                self._tick(MATRIX_STEPS)
            packed_units, lost = packed(part, after, before)
            made += packed_units
            for role, sums in zip(_roles_of(part), lost, strict=True):
                loss.add(role, sums)
        counts = {"zeros": zeros, "weights": weights, "already": already}
        return made, {"loss": loss.to_json(), **counts}

    def _take(self, noted: Notes) -> None:
        """Count what was noted of a group, if it is of a layer."""
        if noted:
            self.loss.add_json(noted["loss"])
            self.zeros += noted["zeros"]
            self.weights += noted["weights"]
            self.already += noted["already"]

    def _tick(self, steps: int = 1) -> None:
        self._steps += steps
        self._report(self._steps, self._total)


def _plans(model: FlashModel, config: ModelConfig, dtype: str, density: float) -> list[GroupPlan]:
    """The groups of the pruned model: those of layers anew, the others as they are.

    Raises UnsupportedModel for codec `row`.
    """
    dtypes: dict[str, str] = {}
    for name, group in model.groups.items():
        layer = _layer_of(name)
        prefix = "" if layer is None else f"layers.{layer}."
        for part in group.parts:
            if part.codec == "row":
                raise UnsupportedModel(
                    f"{model.path}: its neurons are stored one by one; prune the checkpoint "
                    "converted with --codec tile"
                )
            for role, own in zip(_roles_of(part), part.dtypes, strict=True):
                wanted = _KEPT.get(own, own) if dtype == "keep" else dtype
                dtypes[prefix + role] = own if layer is None else wanted
    densities = {role: density for role in dtypes if role.startswith("layers.")}
    planned = {plan.name: plan for plan in plan_groups(config, dtypes, "tile", densities)}
    return [
        GroupPlan(name, model.groups[name].parts) if _layer_of(name) is None else plan
        for name, plan in planned.items()
    ]


_KEPT = {"f32": "f16", "q4m": "q4"}
"""What a dtype that bitmaps cannot have becomes."""


def _check_memory(
    model: FlashModel, config: ModelConfig, method: str, windows: Windows, options: LoadOptions
) -> None:
    """Raises OutOfBudget if a layer and the text take more than there is."""
    budget = options.budget(model.unit_bytes)
    sides = (config.hidden_size, config.query_size, config.ffn.size)
    largest = 4 * max(
        part.neurons * part.width for part in feed_forwards(model)
    )  # a float32 matrix
    layer = max(int(group.lengths.sum()) for group in model.groups.values())
    needed = FIXED_BYTES + 4 * layer + 8 * largest
    needed += 8 * config.hidden_size * sum(map(len, windows))
    if method == "sparsegpt":
        needed += 4 * (sum(side**2 for side in sides) + sides[0] ** 2) + 24 * max(sides) ** 2
    if budget is not None and needed > budget:
        raise OutOfBudget(
            f"pruning {model.path.name} by {method} takes about {format_size(needed)}, and "
            f"{format_size(budget)} may be used; give more (--mem), fewer --tokens, or another "
            "--method"
        )


def _layer_of(group: str) -> int | None:
    """The layer that a group belongs to."""
    _, _, rest = group.partition("layers.")
    return int(rest.partition(".")[0]) if rest else None


def _roles(config: ModelConfig) -> list[str]:
    """The matrices of a layer."""
    return [role for role in (*ATTENTION, *FEED_FORWARD) if config.ffn.gated or role != "ffn_gate"]


def _roles_of(part: Part) -> list[str]:
    """The matrices of a part, in its order."""
    if isinstance(part, MatrixPart):
        return [part.role]
    return list(FEED_FORWARD[-len(part.dtypes) :])
