"""Decoding with Hugging Face Accelerate's disk offload, token by token, with the cost of each.

    python tools/accelerate_decode.py DIR --tokens 5,17,3 --threads 2 --resident-layers 0

Layers are on "disk" except the first --resident-layers, which stay in memory as embeddings, norms
and head do. transformers 5.23 with safetensors reads layers where they lie and writes no copy; they
should have the dtype to compute in, that of config.json, or each is cast every time it is read.
One step for each token, from an empty KV cache, as llama_decode.cpp does. Prints a line of JSON
when the model is loaded and after each token. compare_peers.py runs it, in an environment that has
torch, transformers and accelerate.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers
from decode_events import Meter

KEPT = {
    "opt": (
        "model.decoder.embed_tokens",
        "model.decoder.embed_positions",
        "model.decoder.final_layer_norm",
        "lm_head",
    ),
    "llama": ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"),
}
LAYERS = {"opt": "model.decoder.layers", "llama": "model.layers"}


def main() -> None:
    """Decode the tokens asked for."""
    meter = Meter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", required=True, help="ids, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resident-layers", type=int, default=0, help="how many stay in memory")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = transformers.AutoConfig.from_pretrained(options.model)
    if config.model_type not in KEPT:
        sys.exit(f"accelerate_decode.py: knows {sorted(KEPT)}, not {config.model_type!r}")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model,
        dtype=config.dtype,
        device_map=device_map(config.model_type, config.num_hidden_layers, options.resident_layers),
    ).eval()
    meter.tell("loaded")
    past = None
    with torch.inference_mode():
        for token in options.tokens.split(","):
            step = torch.tensor([[int(token)]])
            past = model(input_ids=step, past_key_values=past, use_cache=True).past_key_values
            meter.tell("token")


def device_map(family: str, layers: int, resident: int) -> dict[str, str]:
    """Where each module is: "cpu" or "disk"."""
    places = dict.fromkeys(KEPT[family], "cpu")
    for i in range(layers):
        places[f"{LAYERS[family]}.{i}"] = "cpu" if i < resident else "disk"
    return places


if __name__ == "__main__":
    main()
