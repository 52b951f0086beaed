"""Make the stored logits that every model family is held to: Hugging Face's own, in float32.

Runs where torch and transformers are (see make_goldens.py for the environment):

    /tmp/torch/bin/python tools/make_family_goldens.py

For each variant of family_variants.py: a folder is written with the config that transformers saves
and weights of tests/family_weights.py; transformers must find every tensor it expects in it, and no
other; its logits at 64 positions go to tests/data/families.safetensors, config and shapes to
tests/data/families.json.gz. Configs as transformers 4 wrote them must give the same logits.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from family_sparse import SPARSE
from family_variants import VARIANTS, VOCAB, config_values
from safetensors import safe_open
from safetensors.numpy import save_file

REPO = Path(__file__).resolve().parent.parent
DATA = REPO / "tests" / "data"
sys.path.insert(0, str(REPO / "tests"))

from family_older import older_config  # noqa: E402
from family_weights import digest, make_weights  # noqa: E402

POSITIONS = 64
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}
COLUMNS = 40


def main() -> None:
    """Make the goldens of the variants asked for, by default all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="*", help="only look at these; nothing is written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    rng = np.random.default_rng(64)
    tokens = rng.integers(4, VOCAB, POSITIONS).astype(np.int32)
    columns = np.sort(rng.choice(VOCAB, COLUMNS, replace=False)).astype(np.int32)
    arrays: dict[str, np.ndarray] = {"tokens": tokens, "columns": columns}
    models: dict[str, Any] = {}
    for name in options.variants or VARIANTS:
        models[name], logits = make(name, tokens)
        arrays[name] = np.ascontiguousarray(logits[:, columns])
        spread = np.abs(np.diff(logits, axis=0)).max()
        print(f"{name:24} rms {np.sqrt((logits**2).mean()):.3f}, moves by up to {spread:.3f}")
    if options.variants:
        return
    about = {"source": f"torch {torch.__version__}, transformers {transformers.__version__}"}
    save_file(arrays, DATA / "families.safetensors", about)
    text = json.dumps(models, indent=0, sort_keys=True).encode()
    (DATA / "families.json.gz").write_bytes(gzip.compress(text, 9, mtime=0))
    for file in ("families.safetensors", "families.json.gz"):
        print(f"{file}: {(DATA / file).stat().st_size:,} bytes")


def make(name: str, tokens: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """What the tests need to build the variant, and its logits [positions, vocabulary]."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fresh_model(name).save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        with safe_open(folder / "model.safetensors", "np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
        less_one = ("Gemma", "Nemotron")
        norm_mean = 0.0 if any(n in config["architectures"][0] for n in less_one) else 1.0
        weights = make_weights(shapes, norm_mean)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        logits = load_and_run(folder, tokens)
        (folder / "config.json").write_text(json.dumps(older_config(config)))
        older = load_and_run(folder, tokens)
        if not np.array_equal(logits, older):
            raise SystemExit(f"{name}: the older config gives other logits")
    return {
        "config": config,
        "shapes": shapes,
        "norm_mean": norm_mean,
        "sha256": digest(weights),
    }, logits


def fresh_model(name: str) -> torch.nn.Module:
    """The variant with transformers' own random weights."""
    kind, values = config_values(name)
    if kind == "Gemma3ForConditionalGeneration":
        config = transformers.Gemma3Config(
            text_config=values, vision_config=VISION, mm_tokens_per_image=4, image_token_index=299
        )
        return transformers.Gemma3ForConditionalGeneration(config)
    if kind == "Mistral3ForConditionalGeneration":
        config = transformers.Mistral3Config(
            text_config={**values, "model_type": "mistral"},
            vision_config={**VISION, "model_type": "pixtral"},
            image_token_index=299,
            tie_word_embeddings=False,
        )
        return transformers.Mistral3ForConditionalGeneration(config)
    if kind == "Gemma3":
        return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**values))
    model_class = architecture(f"{kind}ForCausalLM")
    return model_class(model_class.config_class(**values))


def architecture(name: str) -> type[transformers.PreTrainedModel]:
    """The class of this name, be it one that transformers does not have."""
    return SPARSE[name] if name in SPARSE else getattr(transformers, name)


def load_and_run(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits of the model in a folder, all of whose tensors are read."""
    config = json.loads((folder / "config.json").read_text())
    # Falcon's "eager" path adds ALiBi twice: with the mask, and once more (transformers 5.23,
    # FalconAttention.forward). Its other path is the one that the model was trained with.
    attention = "sdpa" if config.get("alibi") else "eager"
    model, info = architecture(config["architectures"][0]).from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention, output_loading_info=True
    )
    if wrong := {key: value for key, value in info.items() if value}:
        raise SystemExit(f"{folder}: {wrong}")
    with torch.no_grad():
        ids = torch.tensor(tokens[None].astype(np.int64))
        return model.eval()(input_ids=ids, use_cache=False).logits[0].numpy()


if __name__ == "__main__":
    main()
