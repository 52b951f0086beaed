"""A text on its way through a model's layers: dense, to see what matrices read, then pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flashllm.closing import Closing
from flashllm.convert.calibration_text import Windows
from flashllm.convert.layer_runner import (
    HeldUnits,
    LayerRunner,
    Observe,
    embedded,
    planned_model,
)
from flashllm.convert.pruning_methods import Inputs
from flashllm.flash.codecs import Bytes
from flashllm.flash.format import FlashModel
from flashllm.flash.parts import FFNPart
from flashllm.flash.reader import UnitReader
from flashllm.flash.units_file import GroupPlan
from flashllm.layers.buffers import StepBuffers
from flashllm.model.block_wiring import BlockWiring
from flashllm.model.config import ModelConfig

Tick = Callable[[], None]

_READ = {
    "attn_q": "attention_in",
    "attn_k": "attention_in",
    "attn_v": "attention_in",
    "attn_out": "attended",
    "ffn_gate": "ffn_in",
    "ffn_up": "ffn_in",
    "ffn_down": "neurons",
}
"""Which of StepBuffers each matrix reads."""


class TextFlow(Closing):
    """The windows of a text, as they leave the layers passed so far."""

    def __init__(
        self,
        model: FlashModel,
        config: ModelConfig,
        plans: Sequence[GroupPlan],
        windows: Windows,
        reader: UnitReader,
        threads: int,
    ):
        self._config = config
        self._lengths = [len(window) for window in windows]
        longest = max(self._lengths)
        planned = planned_model(model, {plan.name: plan.parts for plan in plans})
        self._theirs, self._ours = HeldUnits(model), HeldUnits(planned)
        self._before = BlockWiring(model, config, self._theirs, longest)
        self._after = BlockWiring(planned, config, self._ours, longest)
        neurons = max(_most_neurons(one) for one in (model, planned))
        self._x = embedded(model, config, reader, windows)
        self._runner = LayerRunner(config, longest, neurons, threads)

    def inputs(
        self, layer: int, units: Mapping[str, Sequence[Bytes]], hessian: bool, tick: Tick
    ) -> dict[str, Inputs]:
        """What the matrices of a layer, with these units, read of the text, by role."""
        c = self._config
        found = {
            "attention_in": Inputs(c.hidden_size, hessian=hessian),
            "attended": Inputs(c.query_size, hessian=hessian),
            "ffn_in": Inputs(c.hidden_size, hessian=hessian),
            "neurons": Inputs(c.ffn.size, hessian=hessian),
        }

        def observe(s: StepBuffers, rows: int) -> None:
            for name, inputs in found.items():
                inputs.add(getattr(s, name).values[:rows, : len(inputs.norms)])

        self._pass(self._theirs, self._before, layer, units, observe, tick)
        return {role: found[name] for role, name in _READ.items()}

    def advance(self, layer: int, units: Mapping[str, Sequence[Bytes]], tick: Tick) -> None:
        """Pass the text through a layer with these units, pruned ones."""
        self._pass(self._ours, self._after, layer, units, None, tick)

    def _pass(
        self,
        held: HeldUnits,
        blocks: BlockWiring,
        layer: int,
        units: Mapping[str, Sequence[Bytes]],
        observe: Observe | None,
        tick: Tick,
    ) -> None:
        for name, own in units.items():
            held.hold(name, own)
        self._runner.run(blocks, layer, self._x, self._lengths, observe, tick)
        held.drop(list(units))

    def close(self) -> None:
        """Stop the threads."""
        self._runner.close()


def feed_forwards(model: FlashModel) -> list[FFNPart]:
    """The feed-forwards of all layers."""
    parts = [part for group in model.parts.values() for part in group]
    return [part for part in parts if isinstance(part, FFNPart)]


def _most_neurons(model: FlashModel) -> int:
    """Neurons of the widest feed-forward, with those that fill its last unit."""
    return max(part.units * part.neurons_per_unit for part in feed_forwards(model))
