"""A flash model's tokeniser files, made from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from flashllm.errors import CorruptModel, ModelNotFound, UnsupportedModel
from flashllm.generate import hf_vocabulary, sentencepiece_model
from flashllm.generate.added_tokens import AddedToken
from flashllm.generate.hf_settings import HFSettings, read_bounded
from flashllm.generate.hf_template import find_template
from flashllm.generate.hf_vocabulary import Vocabulary
from flashllm.generate.sentencepiece_model import BPE, PieceType
from flashllm.generate.special_tokens import end_ids
from flashllm.generate.tokenizer_config import FILE, TokenizerConfig
from flashllm.generate.tokenizer_engine import open_engine

SAMPLING = {
    "temperature": (0.0, 100.0),
    "top_k": (0, 1 << 31),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
}
"""Settings of generation_config.json that are kept, and their ranges."""


def files_from_hf(folder: Path) -> dict[str, bytes]:
    """The tokeniser's files, by name, from a Hugging Face folder.

    Returns the vocabulary ("tokenizer.json" or "tokenizer.model"), "tokenizer_config.json"
    (flashllm's own), and, if the folder has them, "chat_template.jinja" and
    "generation_config.json" (numbers for sampling, none other). tokenizer.json is preferred, then
    tokenizer.model, then vocab.json with merges.txt.

    A reply ends at the tokens that the settings call eos, and at control tokens of the names in
    special_tokens.END_OF_TURN. Raises ModelNotFound if there is no vocabulary; ModelIOError;
    CorruptModel for files that contradict themselves; UnsupportedModel for other tokenisers.
    """
    settings = HFSettings.read(folder)
    data = read_bounded(folder / "tokenizer.json", hf_vocabulary.MAX_BYTES)
    model = read_bounded(folder / "tokenizer.model", sentencepiece_model.MAX_BYTES)
    if data is None and model is None:
        data = _from_merges(settings)
    if data is not None:
        name, config, vocabulary = "tokenizer.json", *_from_json(settings, data)
    else:
        name, config, vocabulary = "tokenizer.model", *_from_model(settings, model or b"")
    open_engine(config, FILE, vocabulary, str(folder / name))  # or it had better not be written
    files = {name: vocabulary, FILE: config.to_bytes()}
    if template := find_template(settings):
        files["chat_template.jinja"] = template.encode("utf-8", "replace")
    if sampling := sampling_settings(settings.generation):
        files["generation_config.json"] = json.dumps(sampling, indent=1).encode()
    return files


def sampling_settings(generation: Mapping[str, object]) -> dict[str, float]:
    """The settings for sampling among those of a generation_config.json, where they make sense."""
    kept = {}
    for name, (low, high) in SAMPLING.items():
        value = generation.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and low <= value <= high:
            kept[name] = int(value) if name == "top_k" else float(value)
    return kept


def _from_merges(settings: HFSettings) -> bytes:
    folder = settings.folder
    vocab = read_bounded(folder / "vocab.json", hf_vocabulary.MAX_BYTES)
    merges = read_bounded(folder / "merges.txt", hf_vocabulary.MAX_BYTES)
    if vocab is None or merges is None:
        raise ModelNotFound(
            f"{folder}: has no tokeniser: neither tokenizer.json, nor tokenizer.model, nor "
            "vocab.json with merges.txt; download the model again, with all its files"
        )
    prefix = settings.flag("add_prefix_space") or False
    return hf_vocabulary.byte_level_json(vocab, merges, str(folder), prefix)


def _from_json(settings: HFSettings, data: bytes) -> tuple[TokenizerConfig, bytes]:
    where = str(settings.folder / "tokenizer.json")
    contents = {settings.content(name) for name in ("bos", "eos", "pad", "unk")} - {None}
    special = {content for content in contents if content}
    added = settings.added_tokens()
    limit = settings.vocab_size()
    vocabulary = hf_vocabulary.read_vocabulary(data, where, added, special, limit)
    config = _config(settings, vocabulary)
    by_id = {i: content for content, i in vocabulary.ids.items()}
    ends = {by_id[i] for i in config.eos_ids}
    if not ends <= vocabulary.controls.keys():  # as bare words they could be in a user's text
        vocabulary = hf_vocabulary.read_vocabulary(data, where, added, special | ends, limit)
    return config, vocabulary.data


def _config(settings: HFSettings, vocabulary: Vocabulary) -> TokenizerConfig:
    bos_id = _id(settings, "bos", vocabulary.ids)
    add_bos = settings.flag("add_bos_token") or False
    if vocabulary.post_processed:  # whose word counts, in transformers since version 5
        add_bos = vocabulary.leading is not None
        bos_id = vocabulary.ids.get(vocabulary.leading or "", bos_id)
    eos_id = _id(settings, "eos", vocabulary.ids)
    spelling = vocabulary.spelling
    return TokenizerConfig(
        kind=spelling.kind,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=_ends(settings, eos_id, vocabulary.controls, set(vocabulary.ids.values())),
        add_bos=add_bos,
        unk_id=vocabulary.unk_id,
        byte_fallback=spelling.byte_fallback,
        strip_space=spelling.strip_space,
    )


def _from_model(settings: HFSettings, data: bytes) -> tuple[TokenizerConfig, bytes]:
    where = settings.folder / "tokenizer.model"
    if data and data.split(b"\n", 1)[0].rpartition(b" ")[2].isdigit():
        raise UnsupportedModel(
            f"{where}: is in tiktoken's format; flashllm needs the tokenizer.json of this model"
        )
    try:
        model = sentencepiece_model.read_model(data)
    except (CorruptModel, UnsupportedModel) as error:
        raise type(error)(f"{where}: {error}") from error
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    controls = {
        piece.text: i for i, piece in enumerate(model.pieces) if piece.type == PieceType.CONTROL
    }
    added = settings.added_tokens()
    ids |= {token.content: token.id for token in added}
    controls |= {token.content: token.id for token in added if token.special}
    bos_id = _id(settings, "bos", ids, ("<s>", "<bos>"), controls)
    eos_id = _id(settings, "eos", ids, ("</s>", "<eos>"), controls)
    ends = _ends(settings, eos_id, controls, set(ids.values()))
    listed = {token.id: token for token in added}
    for content, i in ids.items():  # what ends a reply must not come from a user's text
        if i in ends and content not in controls:
            listed[i] = dataclasses.replace(listed.get(i, AddedToken(i, content)), special=True)
    add_bos = settings.flag("add_bos_token")
    config = TokenizerConfig(
        kind="sentencepiece",
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=ends,
        add_bos=(model.algorithm == BPE) if add_bos is None else add_bos,
        unk_id=next(i for i, p in enumerate(model.pieces) if p.type == PieceType.UNKNOWN),
        prefix_once=settings.flag("legacy") is False,
        added_tokens=tuple(listed[i] for i in sorted(listed)),
    )
    return config, sentencepiece_model.write_model(model)


def _id(
    settings: HFSettings,
    name: str,
    ids: Mapping[str, int],
    usual: tuple[str, ...] = (),
    controls: Mapping[str, int] | None = None,
) -> int | None:
    """The id of the token called `name`: as the settings say, or of one of the `usual` texts."""
    if settings.names(name):
        content = settings.content(name)
        return None if content is None else ids.get(content)
    known = set(ids.values())
    given = [i for i in settings.ids(name) if i in known]
    found = [(controls or {})[text] for text in usual if text in (controls or {})]
    return next(iter([*given, *found]), None)


def _ends(
    settings: HFSettings, eos_id: int | None, controls: Mapping[str, int], known: set[int]
) -> tuple[int, ...]:
    """The ids that end a reply. One that no token has can never come, and is left out."""
    ends = {i for i in settings.ids("eos") if i in known} | end_ids(controls)
    return tuple(sorted(ends if eos_id is None else ends | {eos_id}))
