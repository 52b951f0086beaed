"""Which control tokens end a reply, by the names that published models give them."""

from __future__ import annotations

from collections.abc import Mapping

END_OF_TURN = frozenset(
    {
        "<|im_end|>",  # ChatML: Qwen, SmolLM, Yi, OLMo, Phi-4, StableLM 2
        "<|eot_id|>",  # Llama 3
        "<|eom_id|>",
        "<|eot|>",  # Llama 4
        "<|end|>",  # Phi-3, Phi-4-mini
        "<|endoftext|>",  # GPT-2 and its heirs: Pythia, Falcon, OLMo 2, Phi, Qwen, StableLM
        "<|end_of_text|>",  # Llama 3, Granite
        "<|end_of_turn|>",
        "<end_of_turn>",  # Gemma
        "<eos>",
        "</s>",  # Llama 2, Mistral, OPT
        "<EOT>",
        "<end_of_utterance>",
    }
)
"""Control tokens of these names end a reply, besides those that a model's own settings name."""


def end_ids(controls: Mapping[str, int]) -> set[int]:
    """Of control tokens (text to id), those that end a reply."""
    return {token for content, token in controls.items() if content in END_OF_TURN}
