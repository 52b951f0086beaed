"""What a model will need, from headers alone: of a flash model, a checkpoint, or a known shape."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flashllm import machine
from flashllm.convert.dtypes import HEAD_DTYPE, head_role, matrix_dtypes
from flashllm.convert.gguf_blocks import KEPT, wider
from flashllm.convert.plan import plan_groups
from flashllm.convert.source import understand
from flashllm.errors import UnsupportedModel
from flashllm.flash.format import FlashModel, read_model, unit_offsets
from flashllm.flash.parts import FFNPart, MatrixPart, Part
from flashllm.flash.units_file import GroupPlan, units_bytes
from flashllm.formats.checkpoint import Checkpoint
from flashllm.formats.opening import open_checkpoint
from flashllm.model.config import ModelConfig
from flashllm.model.ffn_parts import extra_bytes, neurons_per_unit
from flashllm.model.options import LoadOptions
from flashllm.model.plan import Needs, Plan, Sizes
from flashllm.model.plan import plan as plan_sizes
from flashllm.model.roles import roles
from flashllm.model.scan import neurons_at_once, scan_of
from flashllm.model.sparse_plan import GATED_ROWS, PLAIN_ROWS, Firing
from flashllm.model.sparse_wiring import check_sparse

_DOCUMENTS = 1 << 20  # manifest and tokeniser, of which nothing is known before the conversion


def plan_checkpoint(
    source: Checkpoint | Path,
    options: LoadOptions,
    *,
    dtype: str = "keep",
    codec: str = "tile",
    fetched: int = 0,
) -> Plan:
    """The plan of a foreign checkpoint once it is converted with this dtype and codec.

    The bytes of weights are exactly those that the conversion writes. fetched: bytes that must be
    downloaded first. Raises what opening and understanding a checkpoint raise, and InvalidInput.
    """
    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    understood = understand(checkpoint)
    dtypes = matrix_dtypes(understood, dtype, codec)
    return _plan_conversion(
        checkpoint.path.stem if checkpoint.kind == "gguf" else checkpoint.path.absolute().name,
        understood.config,
        plan_groups(understood.config, dtypes, codec),
        options,
        documents=_DOCUMENTS + _document_bytes(checkpoint),
        fetched=fetched,
    )


def plan_model(folder: Path, options: LoadOptions) -> Plan:
    """The plan of the flash model in `folder`.

    Raises what opening one raises; UnsupportedModel if it cannot run sparse; InvalidInput.
    """
    model = read_model(folder)
    sizes = Sizes(
        weights=model.unit_bytes,
        stored=sum(entry.nbytes for entry in model.manifest.files.values()),
        bitmaps=_bitmap_bytes(model),
    )
    config = ModelConfig.from_json(model.manifest.config)
    firing = None
    if options.sparse:
        check_sparse(model, config, options.sparse)
        firing = Firing(
            options.sparse,
            options.window,
            max(neurons_per_unit(model.parts).values()),
            GATED_ROWS if config.ffn.gated else PLAIN_ROWS,
            model.manifest.sparsity,
        )
    return _plan(folder.name, config, model.parts, model.offsets, sizes, options, firing)


def plan_shape(
    name: str,
    config: ModelConfig,
    quant: str,
    options: LoadOptions,
    *,
    fetched: int | None = None,
) -> Plan:
    """The plan of a model of which nothing is here but its shape.

    quant: the name of a GGUF file's quantisation, such as "Q4_K_M", or a dtype of ours. fetched:
    bytes of the download, if they are known. Raises UnsupportedModel for an unknown quant, and
    InvalidInput.
    """
    dtypes = guess_dtypes(config, quant)
    groups = plan_groups(config, dtypes, "tile")
    made = _plan_conversion(
        name,
        config,
        groups,
        options,
        documents=_DOCUMENTS + 40 * config.vocab_size,
        fetched=sum(int(group.lengths().sum()) for group in groups) if fetched is None else fetched,
    )
    return made.with_warning("sizes are estimates until the model's headers are here")


def guess_dtypes(config: ModelConfig, quant: str) -> dict[str, str]:
    """The flash dtypes that a GGUF file of this quantisation probably becomes, by role.

    llama.cpp (src/llama-quant.cpp) gives the head 6 bits or more, and in its _M and _L mixtures
    the values of attention and the outputs of feed-forward networks in every third layer as well
    as in the first and last eighth; rows that are no multiple of 256 take types of 32, which keep
    in q8. Raises UnsupportedModel.
    """
    base = _base(quant)
    matrices = {role: shape for role, shape in roles(config).items() if len(shape) == 2}
    dtypes = dict.fromkeys(matrices, base)
    head = head_role(config)
    if quant.lower() == base:  # asked of the converter
        dtypes[head] = HEAD_DTYPE.get(base, base)
        return dtypes
    if "_K" in quant.upper():
        dtypes |= {role: wider(base, "q8") for role, shape in matrices.items() if shape[1] % 256}
    dtypes[head] = wider(base, "q8")
    if quant.upper().endswith(("_K_M", "_K_L")):
        n = config.n_layers
        for i in range(n):
            if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2:
                for role in ("attn_v", "ffn_down"):
                    dtypes[f"layers.{i}.{role}"] = wider(base, "q8")
    return dtypes


def _base(quant: str) -> str:
    """The flash dtype of most matrices of a quantisation."""
    label = quant.upper().removeprefix("UD-")
    if label.lower() in ("f32", "f16", "bf16", "q8", "q4m", "q4"):
        return label.lower()
    for known in sorted(KEPT, key=len, reverse=True):
        if label == known or label.startswith(f"{known}_"):
            return KEPT[known]
    raise UnsupportedModel(f"quantisation {quant!r} is not known; one of {', '.join(KEPT)}")


def _plan_conversion(
    name: str,
    config: ModelConfig,
    groups: Sequence[GroupPlan],
    options: LoadOptions,
    *,
    documents: int,
    fetched: int,
) -> Plan:
    """The plan of a model that these groups will be made for."""
    stored = units_bytes(groups) + _small_bytes(config) + documents
    sizes = Sizes(
        weights=sum(int(group.lengths().sum()) for group in groups),
        stored=stored,
        fetched=fetched,
        to_store=stored,
    )
    parts = {group.name: group.parts for group in groups}
    offsets = {group.name: unit_offsets(group.lengths()).tolist() for group in groups}
    return _plan(name, config, parts, offsets, sizes, options)


def _plan(
    name: str,
    config: ModelConfig,
    parts: Mapping[str, Sequence[Part]],
    offsets: Mapping[str, Sequence[int]],
    sizes: Sizes,
    options: LoadOptions,
    firing: Firing | None = None,
) -> Plan:
    """The plan of a model of these groups: the parts of each, and where its units begin."""
    every = [part for group in parts.values() for part in group]
    codec = next(part.codec for part in every if isinstance(part, FFNPart))
    scan = scan_of(config, offsets, codec, sparse=options.sparse)
    needs = Needs(
        config,
        scan,
        neurons_at_once(scan, neurons_per_unit(parts)),
        options.kv_dtype or "f16",
        extra=extra_bytes(
            every, config, options.sparse, options.threads or machine.cpu().usable_cores
        ),
    )
    return plan_sizes(
        name,
        needs,
        sizes,
        _dtypes(every),
        budget=options.budget(sizes.weights) or machine.memory().total,
        n_ctx=options.context(config),
        firing=firing,
    )


def _bitmap_bytes(model: FlashModel) -> int:
    """Bytes of the units of codec `bitmap`."""
    return sum(
        int(group.lengths[part.first_unit : part.first_unit + part.units].sum())
        for group in model.groups.values()
        for part in group.parts
        if part.codec == "bitmap"
    )


def _dtypes(parts: Iterable[Part]) -> tuple[str, ...]:
    """The dtypes of the weights, the most frequent first."""
    counted: Counter[str] = Counter()
    for part in parts:
        if isinstance(part, MatrixPart):
            counted[part.dtype] += part.rows * part.cols
        else:
            for dtype in part.dtypes:
                counted[dtype] += part.neurons * part.width
    return tuple(dtype for dtype, _ in counted.most_common())


def _small_bytes(config: ModelConfig) -> int:
    """Bytes of the file of vectors, as the safetensors library writes it: by name, compactly."""
    entries, end = {}, 0
    for role, shape in sorted(roles(config).items()):
        if len(shape) == 1:
            begin, end = end, end + 4 * shape[0]
            entries[role] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    header = len(json.dumps(entries, separators=(",", ":")))
    return 8 + header + -header % 8 + end


def _document_bytes(checkpoint: Checkpoint) -> int:
    """What the source takes besides its weights: the tokeniser's files, or the GGUF header."""
    if checkpoint.kind == "gguf":
        first = [t.offset for t in checkpoint.tensors.values() if t.file == checkpoint.files[0]]
        return 2 * min(first, default=0)
    files = [file for file in checkpoint.path.iterdir() if file.suffix in (".json", ".model")]
    return sum(file.stat().st_size for file in files)
