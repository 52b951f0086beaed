"""Run flashllm beside llama.cpp and Hugging Face Accelerate under the same real memory cap.

A 4-bit model at three caps, on this disk as it is and with a laptop's read-ahead:
    python tools/compare_peers.py --flash DIR --gguf FILE --peer /tmp/llama \\
        --caps 1.2x,0.5x,0.25x --read-ahead found,128

OPT against disk offload, in float16 and bfloat16 (tools/cast_safetensors.py makes the second):
    python tools/compare_peers.py --flash DIR --hf HF_DIR --hf HF_DIR_BF16 \\
        --torch-python /tmp/torch/bin/python --caps 0.5x

A cap of 0.5x is half of the weights and 0.2 GB, for everyone. Every run is cold and in a control
group of its own; contenders take turns, round after round; the disk's own rate is measured before
and after each run, with direct reads of the contender's file. With --read-ahead 128 the models are
copied to a loop device with a read-ahead of 128 KiB. One that fails is not tried again at that cap.
Needs Linux, root, and a machine on which nothing else runs. After kill -9, the last contender and
the mount of the loop disk remain.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from decode_events import Event
from direct_rate import SECONDS, direct_rate
from loop_disk import loop_disk, read_ahead_kb
from peer_contenders import Contender, cap_bytes, contenders
from peer_run import DROPPED, Run, run_contender
from peer_table import tables

from flashllm.errors import FlashError
from flashllm.flash.format import read_manifest


@dataclasses.dataclass(frozen=True)
class Task:
    """A run to do: of a contender, at a share, in a round."""

    contender: Contender
    share: float
    round: int


def main() -> None:
    """Run the contenders and print the tables."""
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        everyone = contenders(options)
        vocab = int(read_manifest(options.flash).config["vocab_size"])
    except FlashError as error:
        sys.exit(f"compare_peers.py: {error}")
    chosen = [each for each in everyone if wanted(each.name, options.only)]
    if not chosen:
        sys.exit(f"compare_peers.py: --only leaves none of {[each.name for each in everyone]}")
    tokens = random.Random(0).choices(range(vocab), k=options.tokens)
    runs: list[Run] = []
    try:
        for read_ahead in options.read_ahead:
            with models_at(chosen, read_ahead, options.loop_folder) as places:
                for run in series(options, chosen, everyone[0], places, tokens):
                    runs.append(run)
                    write_json(options, runs)
    except KeyboardInterrupt:
        print(tables(runs))
        sys.exit(130)
    print(tables(runs))


def arguments() -> argparse.Namespace:
    """What the user asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flash", type=Path, required=True, help="the model, for flashllm")
    parser.add_argument("--gguf", type=Path, help="the same, for llama.cpp")
    parser.add_argument("--peer", type=Path, help="where build_llama_cpp.sh built llama.cpp")
    parser.add_argument("--hf", type=Path, action="append", default=[], help="for Accelerate")
    parser.add_argument("--torch-python", type=Path, help="Python with torch and accelerate")
    parser.add_argument("--caps", type=shares, default=[0.5], help="such as 1.2x,0.5x (default)")
    parser.add_argument(
        "--read-ahead", type=read_aheads, default=[None], help="found (default), KiB, or some"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=8, help=f"the first {DROPPED} do not count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time-limit", type=float, default=300, help="seconds of a run")
    parser.add_argument(
        "--in-memory", action="store_true", help="also flashllm without a cap: what computing takes"
    )
    parser.add_argument(
        "--disk-seconds", type=float, default=SECONDS, help="to measure the disk, before and after"
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="names, such as 'llama-mmap-*'")
    parser.add_argument("--loop-folder", type=Path, help="for the loop disk (default: by --flash)")
    parser.add_argument("--json", type=Path, help="also write every run here, as it ends")
    options = parser.parse_args()
    if options.gguf and not options.peer:
        parser.error("--gguf needs --peer, where llama.cpp was built")
    if options.hf and not options.torch_python:
        parser.error("--hf needs --torch-python")
    if options.tokens <= DROPPED:
        parser.error(f"--tokens: more than {DROPPED}")
    if sys.platform != "linux" or os.geteuid():
        parser.error("needs Linux and root, for control groups and cold runs")
    options.loop_folder = options.loop_folder or options.flash.resolve().parent
    return options


def shares(text: str) -> list[float]:
    """Shares of the weights, of text such as 1.2x,0.5x."""
    found = [float(each.removesuffix("x")) for each in text.split(",")]
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: shares are above 0")
    return found


def read_aheads(text: str) -> list[int | None]:
    """Read-aheads in KiB, None as found, of text such as found,128."""
    return [None if each == "found" else int(each) for each in text.split(",")]


def wanted(name: str, patterns: list[str]) -> bool:
    """Whether a name is like one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def models_at(
    chosen: list[Contender], read_ahead: int | None, folder: Path
) -> Iterator[dict[Path, Path]]:
    """Where each contender's model is to be read, by where it lies."""
    models = list(dict.fromkeys(each.model for each in chosen))
    if read_ahead is None:
        yield {model: model for model in models}
        return
    say(f"copying {len(models)} model(s) to a loop disk with {read_ahead} KiB read-ahead")
    with loop_disk(models, folder, read_ahead) as copies:
        yield copies


def series(
    options: argparse.Namespace,
    chosen: list[Contender],
    first: Contender,
    places: dict[Path, Path],
    tokens: list[int],
) -> Iterator[Run]:
    """Every run at one read-ahead, as it ends."""
    tasks = [
        Task(contender, share, at)
        for share in options.caps
        for at in range(options.rounds)
        for contender in chosen
    ]
    hopeless: set[tuple[str, float]] = set()
    took: dict[str, list[float]] = {}
    while tasks:
        task = tasks.pop(0)
        name = task.contender.name
        if (name, task.share) in hopeless:
            continue
        cap = cap_bytes(task.share, task.contender, first)
        label = f"{name} at {task.share:g}x, round {task.round + 1} of {options.rounds}"
        say(f"{label}: {len(tasks) + 1} to do{eta([task, *tasks], took)}")
        start = time.perf_counter()
        run = measured(options, task, places[task.contender.model], cap, tokens)
        took.setdefault(name, []).append(time.perf_counter() - start)
        say(f"{label}: {told(run)}")
        if not run.steady:
            hopeless.add((name, task.share))
        yield run


def measured(
    options: argparse.Namespace, task: Task, model: Path, cap: int, tokens: list[int]
) -> Run:
    """The run, with what the disk was like around it."""
    largest = model
    if model.is_dir():
        largest = max(model.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    at = 0

    def on_event(event: Event) -> None:
        nonlocal at
        at += event.event == "token"
        if sys.stderr.isatty():
            print(f"  {at} of {len(tokens)} tokens", end="\r", file=sys.stderr)

    before = direct_rate(largest, options.disk_seconds)
    limit = options.time_limit
    run = run_contender(task.contender, model, task.share, cap, tokens, limit, on_event)
    after = direct_rate(largest, options.disk_seconds)
    run.disk_bytes_per_s = statistics.fmean([before, after])
    run.read_ahead_kb = read_ahead_kb(largest)
    run.round = task.round
    return run


def told(run: Run) -> str:
    """A run in a line."""
    if not run.steady:
        return run.note
    rate = f"{run.seconds:.3f} s/token, {run.read_bytes / 1e6:.0f} MB/token"
    return f"{rate}, disk {run.disk_bytes_per_s / 1e9:.2f} GB/s {run.note}".rstrip()


def eta(tasks: list[Task], took: dict[str, list[float]]) -> str:
    """How long the tasks will take, as far as those before them tell."""
    if not took:
        return ""
    usual = statistics.fmean(seconds for found in took.values() for seconds in found)
    left = sum(statistics.fmean(took.get(task.contender.name, [usual])) for task in tasks)
    return f", about {left / 60:.0f} min" if left > 90 else f", about {left:.0f} s"


def write_json(options: argparse.Namespace, runs: list[Run]) -> None:
    """Write what is known so far, if asked to."""
    if options.json:
        found = [dataclasses.asdict(run) for run in runs]
        asked = {name: str(value) for name, value in vars(options).items()}
        options.json.write_text(json.dumps({"options": asked, "runs": found}, indent=1))


def say(text: str) -> None:
    """Progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
