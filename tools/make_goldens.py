"""Make the stored predictions that flashllm's arithmetic is held to.

Runs in an environment of its own, with Hugging Face's Llama in float32 as the judge:

    python3 -m venv /tmp/torch
    /tmp/torch/bin/pip install torch transformers gguf safetensors ml_dtypes
    /tmp/torch/bin/python tools/make_goldens.py smollm2 MODEL.gguf --full FULL.safetensors
    /tmp/torch/bin/python tools/make_goldens.py tiny

`smollm2` scores tests/data/english.txt in windows of 512 tokens: every log-probability goes to
--full (about 0.8 GB, not committed), the top ones to tests/data. `tiny` stores the raw logits of
the seeded model of tests/tiny.py. The files are what flashllm/generate/golden.py reads.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
import torch_llama
import transformers
from reference_tokenizer import from_gguf
from safetensors.numpy import save_file

REPO = Path(__file__).resolve().parent.parent
DATA = REPO / "tests" / "data"
WINDOW = 512
TINY_POSITIONS = 64


def main() -> None:
    """Dispatch on the golden asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads (default 2)")
    verbs = parser.add_subparsers(required=True)
    smollm2 = verbs.add_parser("smollm2", help="predictions for ordinary English")
    smollm2.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    smollm2.add_argument("--full", type=Path, help="write every log-probability to this file")
    smollm2.add_argument("--top", type=int, default=48, help="tokens kept in tests/data")
    smollm2.add_argument("--check", action="store_true", help="compare with transformers' reader")
    smollm2.set_defaults(run=make_smollm2)
    greedy = verbs.add_parser("greedy", help="print the most likely continuation of a text")
    greedy.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    greedy.add_argument("text", help="as it is, without a chat template")
    greedy.add_argument("-n", type=int, default=32, help="tokens to add (default 32)")
    greedy.set_defaults(run=print_greedy)
    tiny = verbs.add_parser("tiny", help="logits of the tiny seeded model")
    tiny.set_defaults(run=make_tiny)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    DATA.mkdir(exist_ok=True)
    options.run(options)


def make_smollm2(options: argparse.Namespace) -> None:
    """Score the English text with the real model."""
    text = (DATA / "english.txt").read_text(encoding="utf-8")
    tokens = np.array(from_gguf(options.gguf).encode(text).ids, dtype=np.int32)
    starts = range(0, len(tokens), WINDOW)
    windows = np.array([(at, min(at + WINDOW, len(tokens))) for at in starts], dtype=np.int32)
    model = torch_llama.load(options.gguf)
    if options.check:
        check_loading(model, options.gguf, tokens[:WINDOW])
    logits = np.concatenate([torch_llama.window_logits(model, tokens[a:b]) for a, b in windows])
    logprobs = log_softmax(logits)
    print(f"{len(tokens)} tokens, {len(windows)} windows")
    print(f"perplexity {perplexity(logprobs, tokens, windows):.4f}")
    about = {
        "source": f"{options.gguf.name}, float32, {versions()}",
        "sha256": sha256(options.gguf),
        "vocab": str(logits.shape[1]),
        "text": "tests/data/english.txt",
    }
    write_golden(DATA / "smollm2_golden.safetensors", tokens, windows, logprobs, options.top, about)
    if options.full:
        write_golden(options.full, tokens, windows, logprobs, logits.shape[1], about)


def make_tiny(options: argparse.Namespace) -> None:
    """Store the tiny model's logits at 64 positions of seeded random tokens."""
    sys.path.insert(0, str(REPO / "tests"))
    import tiny

    with tempfile.TemporaryDirectory() as temporary:
        path = tiny.write_gguf(Path(temporary) / "tiny.gguf")
        model = torch_llama.load(path)
        digest = weights_digest(path)
    vocab = model.config.vocab_size
    tokens = np.random.default_rng(64).integers(0, vocab, TINY_POSITIONS).astype(np.int32)
    logits = torch_llama.window_logits(model, tokens)
    about = {"source": f"tests/tiny.py, float32, {versions()}", "weights_sha256": digest}
    out = DATA / "tiny_llama_golden.safetensors"
    save_file({"tokens": tokens, "logits": logits}, out, about)
    print(f"{out}: {logits.shape}, rms {np.sqrt((logits**2).mean()):.4f}")


def print_greedy(options: argparse.Namespace) -> None:
    """Print the greedy continuation, and the least lead any of its tokens had over the next."""
    tokenizer = from_gguf(options.gguf)
    model = torch_llama.load(options.gguf)
    ids, leads = tokenizer.encode(options.text).ids, []
    start = len(ids)
    for _ in range(options.n):
        logits = torch_llama.window_logits(model, np.array(ids))[-1]
        second, first = np.argsort(logits)[-2:]
        leads.append(float(logits[first] - logits[second]))
        ids.append(int(first))
    print(repr(tokenizer.decode(ids[start:])))
    print("leads in logits:", " ".join(f"{lead:.2f}" for lead in leads))


def weights_digest(path: Path) -> str:
    """A hash over all tensors' bytes in the order of the file: same weights, same hash."""
    digest = hashlib.sha256()
    for tensor in gguf.GGUFReader(path).tensors:
        digest.update(tensor.data.tobytes())
    return digest.hexdigest()


def check_loading(model: torch.nn.Module, path: Path, tokens: np.ndarray) -> None:
    """Hold our reading of the GGUF to transformers' own, which reorders rows by itself."""
    other = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ours = torch_llama.window_logits(model, tokens)
    difference = np.abs(ours - torch_llama.window_logits(other, tokens)).max()
    print(f"largest logit difference from transformers' own GGUF reader: {difference:.3g}")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities, summed in float64, stored in float32."""
    out = np.empty_like(logits)
    for row, target in zip(logits, out, strict=True):
        shifted = row.astype(np.float64) - row.max()
        target[:] = shifted - np.log(np.exp(shifted).sum())
    return out


def perplexity(logprobs: np.ndarray, tokens: np.ndarray, windows: np.ndarray) -> float:
    """exp of the mean loss over every token of each window but its first."""
    rows = np.concatenate([np.arange(start, end - 1) for start, end in windows])
    return float(np.exp(-logprobs[rows, tokens[rows + 1]].astype(np.float64).mean()))


def write_golden(
    path: Path,
    tokens: np.ndarray,
    windows: np.ndarray,
    logprobs: np.ndarray,
    keep: int,
    about: dict[str, str],
) -> None:
    """The `keep` most likely tokens after each position, most likely first (all: in id order)."""
    vocab = logprobs.shape[1]
    if keep < vocab:
        ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :keep].astype(np.int32)
        logprobs = np.take_along_axis(logprobs, ids, axis=1)
    else:
        ids = np.tile(np.arange(vocab, dtype=np.int32), (len(tokens), 1))
    arrays = {"tokens": tokens, "windows": windows, "top_ids": ids, "top_logprobs": logprobs}
    save_file(arrays, path, about)
    print(f"{path}: {path.stat().st_size:,} bytes")


def versions() -> str:
    """The judge's versions."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
