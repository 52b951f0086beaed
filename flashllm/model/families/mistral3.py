"""Mistral Small 3.1 and later, their text: a Llama beside an image encoder, which is left out."""

from __future__ import annotations

import dataclasses

from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import hf_config
from flashllm.model.families.keys import HFKeys
from flashllm.model.families.names import BESIDE_IMAGES, GGUF_NAMES, IMAGES, LLAMA_NAMES
from flashllm.model.families.rope import hf_rope
from flashllm.model.specs import LayerKind


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate the text_config in config.json. Raises CorruptModel or UnsupportedModel.

    What config.json says of a tied head is about the whole model, by defaults that have changed:
    the head is the embedding if there is no other.
    """
    text = keys.inner("text_config")
    kind = LayerKind(hf_rope(text), text.window("sliding_window"))
    config = hf_config(text, "llama", [kind])
    return dataclasses.replace(config, tied_head="lm_head.weight" not in keys.tensors)


FAMILY = Family(
    name="mistral3",
    hf_architectures=("Mistral3ForConditionalGeneration",),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=(),  # in GGUF, "llama"
    config_from_gguf=None,
    gguf_names=GGUF_NAMES,
    hf_prefixes=BESIDE_IMAGES,
    hf_unused=IMAGES,
)
