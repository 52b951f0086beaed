"""Who takes part in compare_peers.py: the programs, their models, and how each is started.

All are given the same tokens, and decode them one at a time from an empty KV cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from flashllm.flash.format import read_model
from flashllm.formats.opening import open_checkpoint

TOOLS = Path(__file__).parent
OVERHEAD = 200_000_000
"""Bytes of memory that every contender gets besides its share of the weights."""

TORCH_BYTES = 600_000_000  # what a process with torch takes, its libraries' pages included
ALIKE = 0.01
"""Weights that differ by less than this share count as equally large."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights, and those of tables of which a token needs one row only."""

    nbytes: int
    looked_up: int

    @property
    def scanned(self) -> int:
        """Bytes that every token needs."""
        return self.nbytes - self.looked_up


@dataclasses.dataclass(frozen=True)
class Contender:
    """A program with a model. command(model, bytes of memory or None, tokens) starts it, where
    `model` may be a copy of its own. capped: whether it runs under the limit."""

    name: str
    engine: str
    model: Path
    weights: Weights
    command: Callable[[Path, int | None, str], list[str]]
    capped: bool = True


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Everyone the options name a model for."""
    found = ours(options.flash, options.threads, options.in_memory)
    if options.gguf:
        found += llama_cpp(options.gguf, options.peer / "bin" / "llama_decode", options.threads)
    for folder in options.hf:
        found += accelerate(folder, options.torch_python, options.threads)
    return found


def ours(folder: Path, threads: int, in_memory: bool) -> list[Contender]:
    """flashllm, and where asked without any limit, which shows what computing alone takes."""
    model = read_model(folder)
    sizes = {name: int(group.lengths.sum()) for name, group in model.groups.items()}
    tables = [name for name in ("embed", "positions") if name in sizes]
    if "output" not in sizes:  # the embedding is the head, too
        tables.remove("embed")
    weights = Weights(model.unit_bytes, sum(sizes[name] for name in tables))

    def command(path: Path, mem: int | None, tokens: str) -> list[str]:
        words = [sys.executable, str(TOOLS / "flashllm_decode.py"), str(path), "--tokens", tokens]
        words += ["--threads", str(threads)]
        return words if mem is None else [*words, "--mem", str(mem)]

    found = [Contender("flashllm", "flashllm", folder, weights, command)]
    if in_memory:
        name = "flashllm-in-memory"
        found.append(Contender(name, "flashllm", folder, weights, command, capped=False))
    return found


def llama_cpp(gguf: Path, program: Path, threads: int) -> list[Contender]:
    """llama.cpp: mapped without repacking, its direct and its lazy mode, and as it comes.

    Its lazy mode reads rows of the tensors that an architecture marks; Llama's marks none.
    """
    tensors = {name: each.nbytes for name, each in open_checkpoint(gguf).tensors.items()}
    table = tensors["token_embd.weight"] if "output.weight" in tensors else 0
    weights = Weights(sum(tensors.values()), table)
    modes = {f"llama-mmap-{count}": (count, "mmap", "off", 0) for count in sorted({1, threads})}
    modes["llama-direct"] = (threads, "dio", "off", 0)
    modes["llama-lazy"] = (threads, "mmap", "on", 0)
    modes["llama-default"] = (threads, "auto", "auto", 1)

    def start(mode: tuple[object, ...]) -> Callable[[Path, int | None, str], list[str]]:
        return lambda path, mem, tokens: [str(word) for word in (program, path, *mode, tokens)]

    return [
        Contender(name, "llama.cpp", gguf, weights, start(mode)) for name, mode in modes.items()
    ]


def accelerate(folder: Path, python: Path, threads: int) -> list[Contender]:
    """Hugging Face Accelerate: all layers on disk, and as many as fit left in memory."""
    checkpoint = open_checkpoint(folder)
    sizes = {name: each.nbytes for name, each in checkpoint.tensors.items()}
    layers = int(str(checkpoint.metadata["num_hidden_layers"]))
    kept = sum(nbytes for name, nbytes in sizes.items() if ".layers." not in name)
    each = (sum(sizes.values()) - kept) // layers
    tables = ["embed_positions.weight"]
    if "lm_head.weight" in sizes:
        tables.append("embed_tokens.weight")
    looked_up = sum(nbytes for name, nbytes in sizes.items() if name.endswith(tuple(tables)))
    weights = Weights(sum(sizes.values()), looked_up)
    dtype = max(checkpoint.tensors.values(), key=lambda tensor: tensor.nbytes).dtype.lower()

    def start(split: bool) -> Callable[[Path, int | None, str], list[str]]:
        def command(path: Path, mem: int | None, tokens: str) -> list[str]:
            words = [str(python), str(TOOLS / "accelerate_decode.py"), str(path)]
            words += ["--tokens", tokens, "--threads", str(threads)]
            room = ((mem or 0) - TORCH_BYTES - kept) // each - 2  # one computes, one is read
            return [*words, "--resident-layers", str(max(0, min(layers, room)))] if split else words

        return command

    return [
        Contender(f"accelerate-{dtype}", "Accelerate", folder, weights, start(False)),
        Contender(f"accelerate-split-{dtype}", "Accelerate", folder, weights, start(True)),
    ]


def cap_bytes(share: float, contender: Contender, first: Contender) -> int:
    """A cap of `share` of the weights: of the first's, if the contender's are as large."""
    own, theirs = contender.weights.nbytes, first.weights.nbytes
    alike = abs(own - theirs) < ALIKE * theirs
    return int(share * (theirs if alike else own)) + OVERHEAD
