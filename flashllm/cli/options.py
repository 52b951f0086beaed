"""The flags that verbs share, by llama.cpp's names, gathered into objects."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flashllm.errors import InvalidInput
from flashllm.hub.manifests import DEFAULT_MODEL
from flashllm.model.options import MOST_GUESSES, LoadOptions
from flashllm.sizes import parse_size

Command = Callable[..., Any]


def check_size(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A click callback: `value` if it is a size, or "auto"."""
    if value == "auto":
        return value
    try:
        parse_size(value)
    except InvalidInput as error:
        raise click.BadParameter(str(error)) from None
    return value


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Which model, and how to open it."""

    model: str
    offline: bool
    load: LoadOptions


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens; None leaves a setting to the model's manifest, then to the library."""

    n_predict: int
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None

    def given(self) -> dict[str, float]:
        """The settings that were given, by the names that manifests and the library use."""
        names = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


_MODEL = click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    metavar="MODEL",
    help="A name in the store or of a known model, OWNER/NAME[:QUANT] of the Hugging Face hub, a "
    "GGUF file, or a folder: what is not here is fetched, what is in another format is converted "
    f"to the store, once. [default: {DEFAULT_MODEL}]",
)
_MEM = click.option(
    "--mem",
    callback=check_size,
    default="auto",
    metavar="SIZE|auto",
    help="Memory that the whole process may use, such as 6GB, 512MiB or 0.5x (of the model). What "
    "of the weights does not fit is read from disk as it is needed. [default: auto, what is free, "
    "and less when other programs need it]",
)
_THREADS = click.option(
    "-t",
    "--threads",
    type=click.IntRange(1, 1024),
    default=None,
    help="Compute threads. [default: one for each physical core]",
)
_KV_DTYPE = click.option(
    "--kv-dtype",
    type=click.Choice(["f16", "f32", "q8"]),
    default=None,
    help="What to keep keys and values of the context in: f32 takes twice the memory of f16, q8 "
    "about half. [default: f16; f32 for the reference backend]",
)
_IO = click.option(
    "--io",
    type=click.Choice(["auto", "direct", "pread", "mmap"]),
    default="auto",
    help="How to read the weights: direct, past the system's page cache; pread, through it; mmap, "
    "from mapped files. [default: auto, direct unless the page cache has them already]",
)
_SPARSE = click.option(
    "--sparse",
    type=click.Choice(["predictor", "oracle", "gate"]),
    default=None,
    help="Read and compute only neurons that fire, of a ReLU model converted with --codec row. "
    "predictor: those that are expected to, which loses a little (see flashllm calibrate); gate: "
    "exactly those, by rows that stay in memory; oracle: the same, these rows not counted. "
    "[default: all neurons]",
)
_WINDOW = click.option(
    "--window",
    type=click.IntRange(0),
    default=None,
    metavar="N",
    help="With --sparse, keep neurons in memory for N tokens after they fired, at most. [default: "
    "as long as there is room]",
)
_DRAFT = click.option(
    "--draft",
    default=None,
    metavar="MODEL",
    help="A small model with the same tokeniser: it guesses tokens, which the model checks several "
    "at once. Replies are the same, and come faster where reading weights takes longest.",
)
_DRAFT_TOKENS = click.option(
    "--draft-tokens",
    type=click.IntRange(1, MOST_GUESSES),
    default=4,
    metavar="N",
    help="With --draft, tokens to guess at a time; with --sparse up to 7. [default: 4]",
)
_OFFLINE = click.option(
    "--offline",
    is_flag=True,
    help="Never use the network: only models already on this computer.",
)

_ENGINE = (
    _MODEL,
    _MEM,
    click.option(
        "-c",
        "--ctx-size",
        type=click.IntRange(1, 1 << 24),
        default=None,
        metavar="N",
        help="Tokens that a conversation may hold. [default: 4096, or fewer if the model was made "
        "for fewer]",
    ),
    _THREADS,
    click.option(
        "--backend",
        type=click.Choice(["cpu", "reference"]),
        default="cpu",
        help="cpu: the fast kernels; reference: plain numpy in float32, slow. [default: cpu]",
    ),
    _OFFLINE,
    _KV_DTYPE,
    _IO,
    _DRAFT,
    _DRAFT_TOKENS,
    _SPARSE,
    _WINDOW,
)

_SAMPLING = (
    click.option(
        "-n",
        "--n-predict",
        type=click.IntRange(-1),
        default=-1,
        metavar="N",
        help="Most tokens to generate; -1 for as many as the context holds. [default: -1]",
    ),
    click.option(
        "-s",
        "--seed",
        type=click.IntRange(-1, (1 << 63) - 1),
        default=-1,
        metavar="N",
        help="Seed of the random choices; -1 for a new one each time. [default: -1]",
    ),
    click.option(
        "--temp",
        "temperature",
        type=click.FloatRange(0),
        help="Temperature; 0 always takes the likeliest token.",
    ),
    click.option("--top-k", type=click.IntRange(0), help="Keep the k likeliest tokens; 0 for all."),
    click.option(
        "--top-p", type=click.FloatRange(0, 1), help="Keep the likeliest tokens that make up p."
    ),
    click.option(
        "--min-p",
        type=click.FloatRange(0, 1),
        help="Keep tokens at least p times as likely as the likeliest.",
    ),
    click.option(
        "--repeat-penalty",
        type=click.FloatRange(0, min_open=True),
        help="Divide the logits of recent tokens by this; 1 is off.",
    ),
)

model_option = _MODEL
offline_option = _OFFLINE
kv_dtype_option = _KV_DTYPE
io_option = _IO
sparse_option = _SPARSE
window_option = _WINDOW
stats_option = click.option(
    "--stats", is_flag=True, help="Print what the reply cost, on standard error."
)
session_option = click.option(
    "--session",
    "session_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on with the conversation in FILE, if it exists, and save it there at the end.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
model_argument = click.argument("model", metavar="MODEL")


def engine_options(command: Command) -> Command:
    """Add the flags that open a model; the command receives them as `engine`."""

    def make(*, model: str, offline: bool, mem: str, ctx_size: int | None, **others: Any) -> Any:
        return EngineOptions(model, offline, LoadOptions(mem, ctx_size, **others))

    names = ["model", "offline", "mem", "ctx_size", "threads", "backend", "kv_dtype", "io"]
    names += ["draft", "draft_tokens"]
    names += ["sparse", "window"]
    return _gather(command, _ENGINE, "engine", make, names)


def sampling_options(command: Command) -> Command:
    """Add the flags that choose tokens; the command receives them as `sampling`."""

    def make(*, seed: int, **others: Any) -> SamplingOptions:
        return SamplingOptions(seed=None if seed == -1 else seed, **others)

    names = [field.name for field in dataclasses.fields(SamplingOptions)]
    return _gather(command, _SAMPLING, "sampling", make, names)


def system_prompt_option(command: Command) -> Command:
    """Add --system-prompt; the command receives it as `system`."""
    return click.option(
        "-sys",
        "--system-prompt",
        "system",
        default=None,
        metavar="TEXT",
        help="What the model is told to be. [default: the model's own]",
    )(command)


def _gather(
    command: Command,
    options: tuple[Callable[[Command], Command], ...],
    argument: str,
    make: Callable[..., Any],
    names: list[str],
) -> Command:
    """Add click `options` to `command`, which gets them as one object made by `make`."""

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        values[argument] = make(**{name: values.pop(name) for name in names})
        return command(**values)

    result: Command = gathered
    for option in reversed(options):
        result = option(result)
    return result


def check_new(folder: Path) -> None:
    """Raise InvalidInput if a folder that is to be made is there."""
    if folder.exists():
        raise InvalidInput(f"{folder} exists already; name another place, or remove it first")


def existing_file(value: str) -> Path:
    """The path of a file that exists. Raises InvalidInput."""
    path = Path(value).expanduser()
    if not path.is_file():
        raise InvalidInput(f"there is no file {path}")
    return path
