"""All wiring: from a model directory to a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flashllm import kernels, machine
from flashllm.cache.units import Progress, ResidentUnits
from flashllm.errors import CorruptModel, InvalidInput, UnsupportedModel
from flashllm.flash.format import FlashModel, MatrixPart, read_model, read_small
from flashllm.flash.parts import FFNPart, Part
from flashllm.flash.reader import UnitReader
from flashllm.kernels.weights import Floats, RowFFN, TileFFN, TileMatrix
from flashllm.layers.attention import Attention
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.ffn import FeedForward
from flashllm.layers.head import Embedding, Head
from flashllm.layers.rope import RopeTable
from flashllm.model.config import ModelConfig
from flashllm.model.decoder import Decoder

KV_DTYPES: dict[str, np.dtype[np.floating]] = {
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
}
"""Dtypes keys and values may be kept in."""

_LOGIT_ROWS = 32
"""Rows of logits computed at once: at 128k tokens of vocabulary 16 MB."""


def load_decoder(
    path: Path,
    *,
    threads: int | None = None,
    backend: str = "cpu",
    kv_dtype: str | None = None,
    max_tokens_per_step: int = 512,
    on_progress: Progress | None = None,
) -> Decoder:
    """Read the model in folder `path` into memory, ready to run.

    threads: by default one per physical core. kv_dtype: "f16" or "f32", by default the backend's
    own ("f16" for cpu). on_progress(bytes read, bytes in all).
    Raises ModelNotFound, CorruptModel, UnsupportedModel, ModelIOError, InvalidInput.
    """
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise InvalidInput(f"keys and values in {kv_dtype!r}: choose one of {sorted(KV_DTYPES)}")
    model = read_model(path)
    config = ModelConfig.from_json(model.manifest.config)
    if (size := config.attention.head_dim) % 16:
        raise UnsupportedModel(f"{path}: heads of {size} elements; multiples of 16 run")
    opened = kernels.load(backend, threads or machine.cpu().usable_cores)
    try:
        # Read once and kept: from a warm page cache this takes half the time of direct reads.
        with UnitReader(model, io="pread") as reader:
            units = ResidentUnits(model, reader, on_progress)
        kept_as = KV_DTYPES[kv_dtype] if kv_dtype else opened.kv_dtype
        return _Wiring(model, config, opened, units, kept_as).decoder(max_tokens_per_step)
    except BaseException:
        opened.close()
        raise


class _Wiring:
    """Makes each layer from its parts of the file."""

    def __init__(
        self,
        model: FlashModel,
        config: ModelConfig,
        backend: kernels.Backend,
        units: ResidentUnits,
        kv_dtype: np.dtype[np.floating],
    ):
        self._model = model
        self._config = config
        self._backend = backend
        self._units = units
        self._kv_dtype = kv_dtype
        self._small = read_small(model.path)
        rope = config.kinds[0].rope
        assert rope
        self._rope = RopeTable(config.context_length, rope.dims, rope.theta)
        self._rope_style = rope.style

    def decoder(self, capacity: int) -> Decoder:
        """The decoder for steps of up to `capacity` tokens."""
        c = self._config
        blocks = [(self._attention(i), self._ffn(i)) for i in range(c.n_layers)]
        widest = max(_neurons(ffn.weights) for _, ffn in blocks)
        buffers = StepBuffers(
            capacity,
            hidden=c.hidden_size,
            heads=c.attention.heads,
            kv_heads=c.attention.kv_heads,
            head_dim=c.attention.head_dim,
            neurons=widest,
            kv_dtype=self._kv_dtype,
        )
        vocab = (c.vocab_size, c.hidden_size)
        embedding = self._matrix("embed", "embed", vocab)
        output = embedding if c.tied_head else self._matrix("output", "output", vocab)
        head = Head(
            self._backend.program(min(capacity, _LOGIT_ROWS)),
            self._norm("output_norm"),
            c.norm.eps,
            output,
        )
        return Decoder(
            c, self._backend, self._units, buffers, self._rope, Embedding(embedding), blocks, head
        )

    def _attention(self, i: int) -> Attention:
        c, group = self._config, f"layers.{i}.attn"
        kv = (c.kv_size, c.hidden_size)
        return Attention(
            layer=i,
            heads=c.attention.heads,
            norm=self._norm(f"layers.{i}.attn_norm"),
            norm_eps=c.norm.eps,
            query=self._matrix(group, "attn_q", (c.query_size, c.hidden_size)),
            key=self._matrix(group, "attn_k", kv),
            value=self._matrix(group, "attn_v", kv),
            out=self._matrix(group, "attn_out", (c.hidden_size, c.query_size)),
            rope=self._rope,
            rope_style=self._rope_style,
        )

    def _ffn(self, i: int) -> FeedForward:
        c, group = self._config, f"layers.{i}.ffn"
        part = self._part(group, "ffn")
        if not isinstance(part, FFNPart) or (part.neurons, part.width) != (
            c.ffn.size,
            c.hidden_size,
        ):
            raise self._wrong(group, part)
        table = self._units.table(group, part.first_unit, part.units)
        norm = self._norm(f"layers.{i}.ffn_norm")
        weights = _tile_ffn(part, table) if part.codec == "tile" else _row_ffn(part, table)
        return FeedForward(norm, c.norm.eps, weights, c.ffn.activation)

    def _matrix(self, group: str, role: str, shape: tuple[int, int]) -> TileMatrix:
        part = self._part(group, role)
        if not isinstance(part, MatrixPart) or (part.rows, part.cols) != shape:
            raise self._wrong(f"{group}/{role}", part)
        table = self._units.table(group, part.first_unit, part.units)
        return TileMatrix(part.dtype, part.rows, part.cols, part.panels_per_unit, table)

    def _part(self, group: str, role: str) -> Part:
        return self._model.group(group).part(role)

    def _norm(self, role: str) -> Floats:
        weight = self._small.get(role)
        if weight is None or weight.shape != (self._config.hidden_size,):
            found = "nothing" if weight is None else str(list(weight.shape))
            raise CorruptModel(
                f"{self._model.path}: norm {role!r} is {found}, expected "
                f"[{self._config.hidden_size}]; convert the model again"
            )
        return weight

    def _wrong(self, what: str, part: Part) -> CorruptModel:
        return CorruptModel(
            f"{self._model.path}: {what} does not have the shape that the config says ({part}); "
            "convert the model again"
        )


def _neurons(weights: TileFFN | RowFFN) -> int:
    return weights.padded_neurons if isinstance(weights, TileFFN) else len(weights.table)


def _tile_ffn(part: FFNPart, table: NDArray[np.int64]) -> TileFFN:
    if part.gate_dtype != part.up_dtype:
        raise UnsupportedModel(
            f"gate is {part.gate_dtype} and up is {part.up_dtype}; convert with one --dtype"
        )
    return TileFFN(
        part.up_dtype, part.down_dtype, part.width, part.neurons, part.blocks_per_unit, table
    )


def _row_ffn(part: FFNPart, table: NDArray[np.int64]) -> RowFFN:
    """Every neuron of the layer, in the order of their ids."""
    if len({part.gate_dtype, part.up_dtype, part.down_dtype}) > 1:
        raise UnsupportedModel("a neuron's gate, up and down differ in dtype; convert with --dtype")
    ids = np.arange(part.neurons)
    unit, within = np.divmod(ids, part.neurons_per_unit)
    addresses = table[unit] + within * part.grain_bytes
    return RowFFN(part.up_dtype, part.width, np.ascontiguousarray(addresses))
