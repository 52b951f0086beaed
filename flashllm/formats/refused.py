"""Files of other kinds, recognised so that the error can say what they are and what to do."""

from __future__ import annotations

import re
from pathlib import Path, PurePath

from flashllm.errors import CorruptModel, FlashError, InvalidInput, ModelNotFound, UnsupportedModel
from flashllm.formats.hf import CONFIG, INDEX, LFS_POINTER

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
FRAMEWORKS = {
    ".h5": "TensorFlow",
    ".tflite": "TensorFlow",
    ".pb": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".npz": "NumPy",
    ".mlpackage": "Core ML",
}
MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""How files of llama.cpp's formats before GGUF begin: ggml, ggmf, ggjt, ggla."""

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_SHARD = re.compile(r".+-\d{5}-of-\d{5}\.safetensors")
_ASK = "ask for a safetensors or GGUF version of the model"


def refusal_of_file(path: Path, head: bytes) -> FlashError | None:
    """Why the file `path`, which begins with `head`, is not read; None if it looks like GGUF."""
    suffix = path.suffix.lower()
    if head.startswith(LFS_POINTER):
        return CorruptModel(f"{path}: is a Git LFS pointer, not the model; run `git lfs pull`")
    if head.startswith((b"GGUF", b"FUGG")):
        return None
    if head.startswith(MAGICS):
        return UnsupportedModel(
            f"{path}: is in a format that llama.cpp gave up for GGUF in 2023; {_ASK}"
        )
    if suffix == ".safetensors":
        return InvalidInput(
            f"{path}: is part of a Hugging Face model; name its folder, which must also hold "
            f"{CONFIG}: {path.parent}"
        )
    if suffix in PICKLES or head.startswith((_ZIP, _PICKLE)):
        return _pickle(path)
    if suffix in FRAMEWORKS:
        return UnsupportedModel(f"{path}: is a model for {FRAMEWORKS[suffix]}; {_ASK}")
    if suffix == ".gguf":
        return None  # its reader says what is wrong with it
    return CorruptModel(f"{path}: is not a GGUF file (it begins with {head[:4]!r})")


def refusal_of_folder(path: Path, names: frozenset[str]) -> FlashError:
    """Why the folder `path`, which holds these names, is not a checkpoint."""
    suffixes = {PurePath(name).suffix.lower() for name in names}
    if {"manifest.json", "small.safetensors"} <= names:
        return InvalidInput(f"{path}: is in the flash format already; run it as it is")
    if "adapter_config.json" in names:
        return UnsupportedModel(
            f"{path}: holds an adapter (LoRA), not a model; merge it into its base model first"
        )
    if any(_SHARD.fullmatch(name) for name in names) and CONFIG in names:
        return CorruptModel(f"{path}: {INDEX} is missing; download the model again, with all files")
    if ".safetensors" in suffixes:
        needed = "no model.safetensors" if CONFIG in names else f"no {CONFIG}"
        return ModelNotFound(
            f"{path}: holds safetensors files but {needed}; download the model in Hugging Face's "
            "layout, with all its files"
        )
    if ".gguf" in suffixes:
        found = sorted(name for name in names if name.lower().endswith(".gguf"))
        return InvalidInput(f"{path}: name one of the GGUF files in it, such as {found[0]!r}")
    if pickled := sorted(name for name in names if PurePath(name).suffix.lower() in PICKLES):
        return _pickle(path / pickled[0])
    for suffix in sorted(suffixes & set(FRAMEWORKS)):
        return UnsupportedModel(f"{path}: holds a model for {FRAMEWORKS[suffix]}; {_ASK}")
    return ModelNotFound(
        f"{path}: holds no model; expected {CONFIG} and safetensors files, or name a GGUF file"
    )


def _pickle(path: Path) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: is a pickle, which can run any program when it is opened, so it is not; {_ASK}"
    )
