"""The shape of a known model, before any of it is on this computer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flashllm.errors import CorruptModel, FlashError
from flashllm.hub.manifests import Manifest
from flashllm.model.config import ModelConfig
from flashllm.model.families import translate_hf


def config_of(manifest: Manifest) -> ModelConfig:
    """The config that the manifest's shape means. RoPE scalings are left out: no size needs them.

    Raises CorruptModel, naming the manifest.
    """
    try:
        return translate_hf(manifest.shape, (), _no_vector).config
    except FlashError as error:
        raise CorruptModel(f"model manifest {manifest.name}: shape: {error}") from None


def _no_vector(name: str) -> NDArray[np.float32]:
    raise CorruptModel(f"it cannot tell what the tensor {name} holds")
