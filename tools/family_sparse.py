"""Sparse models that transformers does not have, made of those that it has, for the goldens.

Facts from huggingface.co/SparseLLM/prosparse-llama-2-7b (modeling_sparsellama.py) and
huggingface.co/PowerInfer/TurboSparse-Mistral-Instruct (modeling_bamboo.py).
"""

from __future__ import annotations

import torch
import transformers


class FATReLU(torch.nn.Module):
    """What exceeds a threshold, unchanged."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > self.threshold, x, 0.0)


class SparseLlamaConfig(transformers.LlamaConfig):
    model_type = "sparsellama"


class SparseLlamaForCausalLM(transformers.LlamaForCausalLM):
    """Llama whose gates go through FATReLU."""

    config_class = SparseLlamaConfig

    def __init__(self, config: SparseLlamaConfig) -> None:
        super().__init__(_relu(config))
        for layer in self.model.layers:
            layer.mlp.act_fn = FATReLU(config.hidden_act_param)
        config.hidden_act = "fatrelu"


class BambooForCausalLM(transformers.MistralForCausalLM):
    """Mistral whose gates and ups go through ReLU."""

    def __init__(self, config: transformers.MistralConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            up = layer.mlp.up_proj
            up.register_forward_hook(lambda _module, _args, found: torch.relu(found))


SPARSE = {cls.__name__: cls for cls in (SparseLlamaForCausalLM, BambooForCausalLM)}


def _relu(config: SparseLlamaConfig) -> SparseLlamaConfig:
    """The config with a function that transformers knows, for as long as it builds the model."""
    config.hidden_act = "relu"
    return config
