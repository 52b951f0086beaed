"""Hold flashllm to llama.cpp, built by tools/build_llama_cpp.sh, on the same model file.

    python tools/compare_llama_cpp.py quality --peer DIR --gguf FILE --golden FULL_GOLDEN
    python tools/compare_llama_cpp.py speed --peer DIR --gguf FILE --model MODEL

`quality` runs llama.cpp over a golden's own windows and scores its logits with flashllm's
generate/score.py, so that `flashllm eval --against GOLDEN` gives the figures to set beside them.
`speed` alternates the two engines, so that a neighbour's load falls on both, and prints the ratio
of each pair. Both read the file memory-mapped with repacking off unless --repack says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flashllm.generate import score
from flashllm.generate.golden import Golden, read_golden
from flashllm.model.config import ModelConfig

PROMPT, REPLY = 512, 128


def main() -> None:
    """Dispatch on what to compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--peer", type=Path, required=True, help="where llama.cpp was built")
    shared.add_argument("--gguf", type=Path, required=True, help="the model, for llama.cpp")
    shared.add_argument("--repack", action="store_true", help="let llama.cpp repack its weights")
    verbs = parser.add_subparsers(required=True)
    quality = verbs.add_parser("quality", parents=[shared], help="KL, top-1 and perplexity")
    quality.add_argument("--golden", type=Path, required=True, help="predictions to hold it to")
    quality.add_argument("--vocab", type=int, default=49152, help="tokens (default: SmolLM2's)")
    quality.add_argument("--threads", type=int, default=2)
    quality.set_defaults(run=compare_quality)
    speed = verbs.add_parser("speed", parents=[shared], help="prefill and decode rates")
    speed.add_argument("--model", help="the same model, for flashllm; left out: llama.cpp alone")
    speed.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    speed.add_argument("--rounds", type=int, default=5, help="alternations (default 5)")
    speed.add_argument("--repetitions", type=int, default=3, help="runs a round (default 3)")
    speed.add_argument("--json", type=Path, help="also write every sample here")
    speed.set_defaults(run=compare_speed)
    options = parser.parse_args()
    options.run(options)


def compare_quality(options: argparse.Namespace) -> None:
    """Print how far llama.cpp's predictions are from the golden's."""
    golden = read_golden(options.golden, options.vocab)
    with tempfile.TemporaryDirectory() as temporary:
        logits = peer_logits(options, golden, Path(temporary))
        found = score.compare_golden(Replay(logits), golden)
    print(json.dumps({"engine": "llama.cpp", "repack": options.repack, **vars(found)}, indent=1))
    if golden.top_ids.shape[1] == options.vocab:
        judge = score.perplexity(
            Replay(golden.top_logprobs), golden.tokens.tolist(), golden.windows
        )
        print(f"the golden's own perplexity: {judge.perplexity:.4f}")


def peer_logits(
    options: argparse.Namespace, golden: Golden, folder: Path
) -> npt.NDArray[np.float32]:
    """llama.cpp's logits [N, vocab] after each token of `golden`, mapped from `folder`."""
    tokens, windows, out = folder / "tokens", folder / "windows", folder / "logits"
    golden.tokens.tofile(tokens)
    np.array(golden.windows, dtype=np.int32).tofile(windows)
    program = options.peer / "bin" / "llama_logits"
    flags = [str(options.threads), str(int(options.repack))]
    subprocess.run([program, options.gguf, tokens, windows, out, *flags], check=True)
    return np.memmap(out, np.float32, "r").reshape(len(golden.tokens), options.vocab)


class Replay:
    """Stored logits in the place of a decoder: what score.py needs of one, and no more.

    Every step returns the next rows, so windows must cover the text in order, as goldens' do.
    """

    config: ModelConfig
    resident_bytes = 0

    def __init__(self, logits: npt.NDArray[np.float32]) -> None:
        self._logits = logits
        self._next = 0

    def new_sequence(self, n_ctx: int, /) -> Any:
        """A sequence that holds nothing: scoring only truncates and closes it."""
        return ReplaySequence()

    def step(
        self,
        sequence: Any,
        tokens: Any,
        /,
        *,
        logits: Literal["last", "all", "none"],
        on_layer: Callable[[int, int], None] | None = None,
    ) -> npt.NDArray[np.float32]:
        """The stored logits [T, vocab] of the next T tokens."""
        start, self._next = self._next, self._next + len(tokens)
        return np.asarray(self._logits[start : self._next])

    def close(self) -> None:
        """Nothing to release."""


class ReplaySequence:
    """The place of a KV cache."""

    def truncate(self, length: int, /) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""


Rates = dict[str, list[float]]
"""tokens/s by "prefill" and "decode"."""


def compare_speed(options: argparse.Namespace) -> None:
    """Alternate the engines and print medians, ranges and the ratios pair by pair."""
    found: dict[str, list[Rates]] = {}
    for at in range(options.rounds):
        for threads in options.threads:
            found.setdefault(f"llama.cpp {threads}", []).append(peer_rates(options, threads))
            if options.model:
                found.setdefault(f"flashllm {threads}", []).append(own_rates(options, threads))
        print(f"round {at + 1} of {options.rounds}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    for threads in options.threads:
        peer, own = found[f"llama.cpp {threads}"], found.get(f"flashllm {threads}")
        for phase in ("prefill", "decode"):
            print(describe(f"{threads} thread(s) {phase:7}", "llama.cpp", peer, phase))
            if own:
                print(describe(f"{threads} thread(s) {phase:7}", "flashllm", own, phase))
                print(describe_ratios(own, peer, phase))


def peer_rates(options: argparse.Namespace, threads: int) -> Rates:
    """One llama-bench run: a prompt of 512, then 128 tokens from an empty cache."""
    flags = ["-m", options.gguf, "-lm", "mmap", "--repack", int(options.repack), "-t", threads]
    flags += ["-p", PROMPT, "-n", REPLY, "-r", options.repetitions, "-o", "json"]
    program = options.peer / "bin" / "llama-bench"
    prefill, decode = run_json([program, *flags])
    return {"prefill": prefill["samples_ts"], "decode": decode["samples_ts"]}


def own_rates(options: argparse.Namespace, threads: int) -> Rates:
    """The same of flashllm, whose bench writes after its prompt: decode gets a prompt of one."""
    shared = ["-m", options.model, "-t", threads, "-r", options.repetitions, "--json"]
    bench = [sys.executable, "-m", "flashllm", "bench", *shared]
    prefill = run_json([*bench, "-p", PROMPT, "-n", 1])["results"][0]
    decode = run_json([*bench, "-p", 1, "-n", REPLY])["results"][0]
    return {"prefill": rates(prefill, "prefill"), "decode": rates(decode, "decode")}


def rates(result: dict[str, Any], phase: str) -> list[float]:
    """The least, median and greatest rate that `flashllm bench` tells of a phase."""
    low, high = result[f"{phase}_range"]
    return [low, result[f"{phase}_tok_s"], high]


def run_json(command: list[object]) -> Any:
    """The JSON a command prints."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} from: {' '.join(words)}")
    return json.loads(done.stdout)


def describe(label: str, engine: str, rounds: list[Rates], phase: str) -> str:
    """The median over rounds of each round's median, and the extremes of all samples."""
    medians = [statistics.median(each[phase]) for each in rounds]
    samples = [sample for each in rounds for sample in each[phase]]
    middle = statistics.median(medians)
    return f"{label}  {engine:9}  {middle:8.1f} tok/s  [{min(samples):.1f} to {max(samples):.1f}]"


def describe_ratios(own: list[Rates], peer: list[Rates], phase: str) -> str:
    """flashllm over llama.cpp, round by round."""
    ratios = [
        statistics.median(ours[phase]) / statistics.median(theirs[phase])
        for ours, theirs in zip(own, peer, strict=True)
    ]
    pairs = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"    ratio {statistics.median(ratios):.2f} (pairs {pairs})"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
