"""Llama 1 to 3.3 and what shares its blocks: SmolLM2, Yi, Mistral with its sliding window.

And what was made sparse of them: ReluLLaMA, ProSparse, Bamboo and TurboSparse-Mistral.
"""

from __future__ import annotations

from flashllm.errors import UnsupportedModel
from flashllm.model.config import ModelConfig
from flashllm.model.families.base import Family
from flashllm.model.families.common import gguf_config, hf_config, hf_ffn
from flashllm.model.families.keys import GGUFKeys, HFKeys
from flashllm.model.families.names import GGUF_NAMES, LLAMA_NAMES
from flashllm.model.families.rope import gguf_rope, hf_rope
from flashllm.model.specs import LayerKind

MISTRAL = "MistralForCausalLM"
BAMBOO = "BambooForCausalLM"
"""Mistral with ReLU of gate and of up (huggingface.co/PowerInfer/TurboSparse-Mistral-Instruct,
modeling_bamboo.py); the predictors that its makers trained for it are not used."""

PROSPARSE = "SparseLlamaForCausalLM"
"""Llama with FATReLU, by its makers' name for it."""

MISTRAL_WINDOW = 4096
"""Mistral's window where config.json does not speak of one (transformers, MistralConfig)."""


def config_from_gguf(keys: GGUFKeys) -> ModelConfig:
    """Translate GGUF's llama.* keys. Raises CorruptModel or UnsupportedModel."""
    rope = gguf_rope(keys, "interleaved")
    return gguf_config(keys, "llama", [LayerKind(rope, keys.window("attention.sliding_window"))])


def config_from_hf(keys: HFKeys) -> ModelConfig:
    """Translate config.json. Raises CorruptModel or UnsupportedModel."""
    if keys.architecture == PROSPARSE and keys.text("model_type", "") != "sparsellama":
        raise UnsupportedModel(
            f"several kinds of model are called {PROSPARSE}; only model_type 'sparsellama' runs"
        )
    window, twice = None, keys.architecture == BAMBOO
    if keys.architecture in (MISTRAL, BAMBOO):
        window = keys.window("sliding_window", absent=MISTRAL_WINDOW)
    ffn = hf_ffn(keys, up_activation="relu" if twice else "none")
    if twice and ffn.activation != "relu":
        raise UnsupportedModel(f"a Bamboo with {ffn.activation!r} instead of 'relu' is not known")
    return hf_config(keys, "llama", [LayerKind(hf_rope(keys), window)], ffn=ffn)


FAMILY = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM", "LLaMAForCausalLM", MISTRAL, PROSPARSE, BAMBOO),
    config_from_hf=config_from_hf,
    hf_names=LLAMA_NAMES,
    gguf_architectures=("llama",),
    config_from_gguf=config_from_gguf,
    gguf_names=GGUF_NAMES,
    hf_unused=(r".*\.rotary_emb\.inv_freq", r".*\.mlp\.predictor\..*"),
)
