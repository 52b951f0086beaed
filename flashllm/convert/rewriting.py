"""A flash model written anew with its neurons in another order, and with predictors of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from flashllm.convert.conversion import created_by
from flashllm.convert.copying import copied_units, gathered_units
from flashllm.convert.plan import predictor_plan
from flashllm.convert.predictor import Predictor
from flashllm.errors import CorruptModel, InvalidInput, ModelIOError, UnsupportedModel
from flashllm.flash.codecs import Bytes, pack_matrix
from flashllm.flash.format import MAX_SMALL, FlashModel, Group, read_small
from flashllm.flash.manifest import SMALL_FILE
from flashllm.flash.parts import FFNPart, MatrixPart
from flashllm.flash.quantize import Floats, quantize
from flashllm.flash.reader import UnitReader
from flashllm.flash.sparsity import check_sparsity
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.flash.writer import ModelWriter
from flashllm.model.config import ModelConfig

REPORT_BYTES = 1 << 20
"""Written between two reports of progress."""

PREDICTOR_DTYPE = "q8"

Order = NDArray[np.int64]
OnProgress = Callable[[int, int], None]


def rewrite(
    model: FlashModel,
    target: Path,
    *,
    orders: Sequence[Order | None],
    predictors: Sequence[Predictor | None],
    sparsity: dict[str, Any],
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Write `model`, of codec row, to the new folder `target` and return that.

    Stored neuron j of layer i becomes what orders[i][j] was, int64 [neurons], each once; None
    leaves a layer's order. Predictors know the new order, and are stored in q8, whose scales are
    float16; those that the model had are dropped. sparsity: the manifest's, see docs/format.md,
    with rank 0 where there is no predictor. Weights stay bit for bit what they were; units of
    neurons become as large as a conversion makes them now.

    One layer's feed-forward network is in memory at a time. on_progress is told bytes of units
    written and in total, and may raise to stop; then, and after any error, nothing is left behind.
    `target` may be the model's own folder, with overwrite.

    Raises InvalidInput (orders, predictors or sparsity that do not fit the model; target exists or
    is in use), UnsupportedModel (codec tile), CorruptModel, DiskFull, ModelIOError.
    """
    layers = _layers(model)
    _check_orders(orders, layers)
    _check_predictors(predictors, layers)
    _check_figures(sparsity, predictors)
    source = _Source(model, layers, orders, predictors)
    plans = source.plans()
    with ModelWriter(target, overwrite=overwrite) as writer:
        writer.check_room(units_bytes(plans))
        copy_files(model, writer)
        writer.add_file(SMALL_FILE, safetensors.numpy.save(source.vectors()))
        progress = _Progress(plans, on_progress)
        with UnitReader(model) as reader:
            units = (source.units(plan, reader) for plan in plans)
            writer.add_units(plans, progress.count(itertools.chain.from_iterable(units)))
        manifest = dataclasses.replace(
            model.manifest,
            created_by=created_by(),
            groups=writer.groups,
            files=writer.files,
            sparsity=sparsity,
        )
        return writer.publish(manifest)


class _Source:
    """What is written: groups of the model, some of them in another order, and predictors."""

    def __init__(
        self,
        model: FlashModel,
        layers: Sequence[FFNPart],
        orders: Sequence[Order | None],
        predictors: Sequence[Predictor | None],
    ):
        self._model = model
        self._layers = layers
        self._orders = orders
        self._names = {f"layers.{i}.ffn": i for i in range(len(layers))}
        self._predictors = {
            f"layers.{i}.predictor": made for i, made in enumerate(predictors) if made is not None
        }
        self._former = {f"layers.{i}.predictor" for i in range(len(layers))}

    def plans(self) -> list[GroupPlan]:
        """The groups, in the order of the model; predictors follow."""
        copied = [g for g in self._model.groups.values() if g.name not in self._former]
        plans = [GroupPlan(group.name, self._parts(group)) for group in copied]
        for i in range(len(self._layers)):
            made = self._predictors.get(f"layers.{i}.predictor")
            if made is not None:
                (rank, hidden), neurons = made.down.shape, len(made.up)
                plans.append(predictor_plan(i, rank, hidden, neurons, PREDICTOR_DTYPE))
        return plans

    def units(self, plan: GroupPlan, reader: UnitReader) -> Iterator[Bytes]:
        """The units of a group, in order, each valid until the next."""
        if plan.name in self._predictors:
            return _predictor_units(self._predictors[plan.name], plan)
        group = self._model.group(plan.name)
        layer = self._names.get(plan.name)
        order = None if layer is None else self._orders[layer]
        if layer is None or (order is None and plan.parts == group.parts):
            return copied_units(group, reader)
        per_unit = self._planned(self._layers[layer]).neurons_per_unit
        return gathered_units(group, self._layers[layer], order, per_unit, reader)

    def vectors(self) -> dict[str, Floats]:
        """The model's vectors by role: biases in their neurons' order, and of the predictors."""
        path = self._model.path
        former = {f"{name}_bias" for name in self._former}
        vectors = {name: v for name, v in read_small(path).items() if name not in former}
        for i, (part, order) in enumerate(zip(self._layers, self._orders, strict=True)):
            for role in (f"layers.{i}.ffn_gate_bias", f"layers.{i}.ffn_up_bias"):
                if order is not None and role in vectors:
                    if vectors[role].shape != (part.neurons,):
                        raise CorruptModel(
                            f"{path}: vector {role!r} is not of {part.neurons} neurons; "
                            "convert the model again"
                        )
                    vectors[role] = vectors[role][order]
        for name, made in self._predictors.items():
            vectors[f"{name}_bias"] = np.ascontiguousarray(made.bias, np.float32)
        return vectors

    def _parts(self, group: Group) -> tuple[FFNPart | MatrixPart, ...]:
        layer = self._names.get(group.name)
        return group.parts if layer is None else (self._planned(self._layers[layer]),)

    def _planned(self, part: FFNPart) -> FFNPart:
        """The part as it is written: units as large as a conversion makes them now."""
        dtypes = (part.gate_dtype, part.up_dtype, part.down_dtype)
        return FFNPart.plan(part.role, part.codec, dtypes, part.neurons, part.width, 0)


class _Progress:
    """Counts the bytes of the units that pass."""

    def __init__(self, plans: Sequence[GroupPlan], on_progress: OnProgress | None):
        self._total = sum(int(plan.lengths().sum()) for plan in plans)
        self._report = on_progress or (lambda done, total: None)

    def count(self, units: Iterator[Bytes]) -> Iterator[Bytes]:
        """`units`, and a report about every MiB and at the end."""
        done = told = 0
        for unit in units:
            done += len(unit)
            if done - told >= REPORT_BYTES or done == self._total:
                self._report(done, self._total)
                told = done
            yield unit


def _predictor_units(predictor: Predictor, plan: GroupPlan) -> Iterator[Bytes]:
    """The units of a predictor's two matrices."""
    for part, values in zip(plan.parts, (predictor.down, predictor.up), strict=True):
        if isinstance(part, MatrixPart):
            matrix = quantize(np.ascontiguousarray(values, np.float32), part.dtype)
            yield from pack_matrix(matrix, part)


def copy_files(model: FlashModel, writer: ModelWriter) -> None:
    """Copy what holds neither units nor vectors: the tokenizer and the like."""
    containers = {group.file for group in model.groups.values()}
    for name, entry in model.manifest.files.items():
        if name in containers or name == SMALL_FILE:
            continue
        path = model.path / name
        if entry.nbytes > MAX_SMALL:
            raise CorruptModel(f"{path}: {entry.nbytes} bytes, too many for a file without weights")
        try:
            writer.add_file(name, path.read_bytes())
        except OSError as error:
            raise ModelIOError(f"{path}: cannot read: {error.strerror}", path) from None
        if writer.files[name] != entry:
            raise CorruptModel(f"{path}: fails its checksum; pull or convert the model again")


def _layers(model: FlashModel) -> list[FFNPart]:
    """The feed-forward network of every layer."""
    config = ModelConfig.from_json(model.manifest.config)
    layers = []
    for i in range(config.n_layers):
        group = model.group(f"layers.{i}.ffn")
        part = group.part("ffn")
        shape = (config.ffn.size, config.hidden_size)
        if (
            not isinstance(part, FFNPart)
            or (part.neurons, part.width) != shape
            or len(group.parts) > 1
        ):
            raise CorruptModel(
                f"{model.path}: {group.name} does not have the shape that the config says; "
                "convert the model again"
            )
        if part.codec != "row":
            raise UnsupportedModel(
                f"{model.path}: its feed-forward networks are of codec {part.codec!r}, whose "
                "neurons have fixed places; convert the checkpoint with --codec row"
            )
        layers.append(part)
    return layers


def _check_orders(orders: Sequence[Order | None], layers: Sequence[FFNPart]) -> None:
    if len(orders) != len(layers):
        raise InvalidInput(f"{len(orders)} orders of neurons for {len(layers)} layers")
    for i, (order, part) in enumerate(zip(orders, layers, strict=True)):
        if order is None:
            continue
        identity = np.arange(part.neurons)
        if order.dtype.kind != "i" or not np.array_equal(np.sort(order), identity):
            raise InvalidInput(
                f"the order of layer {i} does not hold each of its {part.neurons} neurons once"
            )


def _check_predictors(predictors: Sequence[Predictor | None], layers: Sequence[FFNPart]) -> None:
    if len(predictors) != len(layers):
        raise InvalidInput(f"{len(predictors)} predictors for {len(layers)} layers")
    for i, (made, part) in enumerate(zip(predictors, layers, strict=True)):
        if made is None:
            continue
        rank = len(made.down)
        expected = ((rank, part.width), (part.neurons, rank), (part.neurons,))
        arrays = (made.down, made.up, made.bias)
        if tuple(array.shape for array in arrays) != expected or not rank or rank % 32:
            raise InvalidInput(
                f"the predictor of layer {i} has shapes {[list(a.shape) for a in arrays]}, "
                f"expected {[list(shape) for shape in expected]} and a rank that 32 divides"
            )
        if not all(np.isfinite(array).all() for array in arrays):
            raise InvalidInput(f"the predictor of layer {i} holds NaN or infinite numbers")


def _check_figures(sparsity: Mapping[str, Any], predictors: Sequence[Predictor | None]) -> None:
    try:
        check_sparsity(dict(sparsity), len(predictors), "sparsity")
    except CorruptModel as error:
        raise InvalidInput(str(error)) from None
    said = [layer["rank"] for layer in sparsity["layers"]]
    ranks = [0 if made is None else len(made.down) for made in predictors]
    if said != ranks:
        raise InvalidInput(f"sparsity: says ranks {said}, the predictors have {ranks}")
