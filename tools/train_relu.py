"""Train a small ReLU language model of OPT's architecture, sparse as large ones are.

    python tools/relu_corpus.py TEXT
    python tools/train_relu.py TEXT DIR --minutes 60

Writes a Hugging Face folder that flashllm converts. Interrupted, it goes on from DIR/state.pt. An
L1 penalty on what ReLU lets through, as in ProSparse (arXiv 2402.13516), brings the sparsity of a
long training within a short one. Of the text, 2 % are held out: DIR/held-out.txt; a tenth of what
it learns from is DIR/learned.txt, to calibrate with.

Needs torch, transformers, tokenizers; bfloat16 in the processor's matrix units makes it 10 to 20
times as fast.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import OPTConfig, OPTForCausalLM

VOCAB = 4096
CONTEXT = 1280
WINDOW = 384
"""Tokens of a training text: it begins at any position, so that all CONTEXT of them are learned."""
HELD_OUT = 0.02
BATCH = 24
PEAK_RATE, WARM_UP = 1.5e-3, 200
SAVE_EVERY_S = 120
HELD_OUT_SEED = 10_000_000
PENALTY_RAMP = 0.3
"""The share of the training within which the penalty grows to its full weight."""


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--tokens-per-s", type=float, default=2500, help="to plan the rate by")
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--ffn", type=int, default=2560)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--penalty", type=float, default=0.03, help="weight of the L1 term")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    options.target.mkdir(parents=True, exist_ok=True)
    train, held_out = split(options.text, options.target)
    tokenizer = fit_tokenizer(train, options.target)
    ids = encoded(tokenizer, train, options.target / "train.pt")
    held_ids = encoded(tokenizer, held_out, options.target / "held-out.pt")
    model = OPTForCausalLM(config(options))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, {len(ids)} tokens")
    fit(model, ids, held_ids, options)


def split(text: Path, target: Path) -> tuple[list[str], list[str]]:
    """Paragraphs to train on, and those held out; these, and some of those, are also written."""
    paragraphs = text.read_text(encoding="utf-8").split("\n\n")
    # In runs, so that what follows a held-out paragraph was not seen either.
    runs = [paragraphs[i : i + 40] for i in range(0, len(paragraphs), 40)]
    random.Random(0).shuffle(runs)
    held = int(len(runs) * HELD_OUT)
    parts = [[p for run in part for p in run if p] for part in (runs[held:], runs[:held])]
    for name, part in (("learned", parts[0][::10]), ("held-out", parts[1])):
        (target / f"{name}.txt").write_text("\n\n".join(part), encoding="utf-8")
    return parts[0], parts[1]


def fit_tokenizer(paragraphs: list[str], target: Path) -> Tokenizer:
    """A byte-level BPE of VOCAB tokens, kept in `target`."""
    path = target / "tokenizer.json"
    if not path.exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=["</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(paragraphs[::4], trainer)
        tokenizer.save(str(path))
        (target / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"})
        )
    return Tokenizer.from_file(str(path))


def encoded(tokenizer: Tokenizer, paragraphs: list[str], path: Path) -> torch.Tensor:
    """The tokens of paragraphs with an end after each; kept in a file, for it takes a minute."""
    if not path.exists():
        ids: list[int] = []
        for first in range(0, len(paragraphs), 4096):
            for one in tokenizer.encode_batch(paragraphs[first : first + 4096]):
                ids += [*one.ids, 0]
        torch.save(torch.tensor(ids, dtype=torch.int16), path)
    return torch.load(path)


def config(options: argparse.Namespace) -> OPTConfig:
    """The architecture."""
    return OPTConfig(
        vocab_size=VOCAB,
        hidden_size=options.hidden,
        word_embed_proj_dim=options.hidden,
        ffn_dim=options.ffn,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
        use_cache=False,
    )


class Watch(torch.nn.Module):
    """ReLU that remembers what it let through."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """ReLU."""
        y = torch.relu(x)
        self.mean = y.mean(dtype=torch.float32)
        self.active = torch.count_nonzero(y.detach()) / y.numel()
        return y


def fit(
    model: OPTForCausalLM, ids: torch.Tensor, held_ids: torch.Tensor, options: argparse.Namespace
) -> None:
    """Train for so many minutes, all sessions together, and write the model."""
    watches = []
    for layer in model.model.decoder.layers:
        layer.activation_fn = Watch()
        watches.append(layer.activation_fn)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05
    )
    total = int(options.minutes * 60 * options.tokens_per_s / (BATCH * WINDOW))
    state_file = options.target / "state.pt"
    first = 0
    if state_file.exists():
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    saved = start = time.monotonic()
    for step in range(first, total):
        if time.monotonic() - start > options.minutes * 60:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, total)
        loss = loss_of(model, windows(ids, BATCH, step), step)
        weight = options.penalty * min(1.0, step / (PENALTY_RAMP * total))
        penalty = sum(watch.mean for watch in watches)
        optimizer.zero_grad(set_to_none=True)
        (loss + weight * penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            active = sum(float(watch.active) for watch in watches) / len(watches)
            speed = (step - first + 1) * BATCH * WINDOW / (time.monotonic() - start)
            print(
                f"{step}/{total} loss {loss.item():.3f} active {active:.3f} {speed:.0f} tok/s",
                flush=True,
            )
        if time.monotonic() - saved > SAVE_EVERY_S:
            save(model, optimizer, step + 1, options.target)
            saved = time.monotonic()
    save(model, optimizer, step + 1, options.target)
    print(json.dumps(held_out_figures(model, held_ids, watches)))


def rate(step: int, total: int) -> float:
    """The learning rate: up in a line, down in a cosine."""
    if step < WARM_UP:
        return PEAK_RATE * (step + 1) / WARM_UP
    return PEAK_RATE * (0.05 + 0.95 * (1 + math.cos(math.pi * step / total)) / 2)


def windows(ids: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """So many runs of WINDOW tokens from random places."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(ids) - WINDOW, (count,), generator=draw)
    return torch.stack([ids[s : s + WINDOW].long() for s in starts.tolist()])


def loss_of(model: OPTForCausalLM, batch: torch.Tensor, seed: int) -> torch.Tensor:
    """Cross-entropy of texts that begin at a random position."""
    begin = random.Random(seed).randrange(CONTEXT - WINDOW)
    positions = torch.arange(begin, begin + WINDOW - 1).expand(len(batch), -1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(batch[:, :-1], position_ids=positions).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def save(model: OPTForCausalLM, optimizer: torch.optim.Optimizer, step: int, target: Path) -> None:
    """Write the state to go on from, and the model so far."""
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step},
        target / "state.tmp",
    )
    (target / "state.tmp").replace(target / "state.pt")
    weights = model.state_dict()
    model.save_pretrained(target, state_dict={k: v.half() for k, v in weights.items()})


@torch.no_grad()
def held_out_figures(
    model: OPTForCausalLM, ids: torch.Tensor, watches: list[Watch]
) -> dict[str, object]:
    """Perplexity of held-out text, and the share of neurons that fire, by layer."""
    losses, active = [], []
    for seed in range(8):
        losses.append(loss_of(model, windows(ids, BATCH, HELD_OUT_SEED + seed), seed))
        active.append([float(watch.active) for watch in watches])
    by_layer = torch.tensor(active).mean(0)
    return {
        "perplexity": math.exp(torch.stack(losses).mean()),
        "active": round(float(by_layer.mean()), 4),
        "by_layer": [round(float(share), 4) for share in by_layer],
    }


if __name__ == "__main__":
    main()
