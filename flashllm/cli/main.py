"""The flashllm command: finds the verb, imports only that, and turns errors into exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from flashllm.errors import FlashError, OutOfBudget

# What each verb does, in the order of a first day's use. `flashllm VERB` imports cli/VERB.py.
VERBS = {
    "chat": "Talk with a model.",
    "run": "Answer one prompt and exit.",
    "pull": "Fetch a model, of the Hugging Face hub too, and convert it.",
    "plan": "Say whether a model fits, from its headers alone.",
    "convert": "Convert a checkpoint to the flash format.",
    "prune": "Make the weights of a model zero that matter least.",
    "calibrate": "Fit predictors of which neurons a ReLU-sparse model needs.",
    "ls": "List the models on this computer.",
    "show": "Describe a model.",
    "rm": "Remove a model from the store.",
    "verify": "Check every byte of a model against its checksums.",
    "doctor": "Describe this computer as flashllm sees it.",
    "bench": "Measure speed and memory.",
    "eval": "Measure a model's quality on a text.",
}

INTERRUPTED = 130
BROKEN_PIPE = 141


class ReaderLeft(Exception):
    """Whoever reads our standard output has left. Not an OSError, which click would swallow."""


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are asked for, not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"flashllm.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `flashllm chat`: the first time it fetches a small model (93 MB), then it "
    "works offline. `flashllm VERB --help` explains a verb; docs/cli.md lists the exit codes.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, param, value: print_version(ctx) if value else None,
    help="Show the version and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Run language models on this computer's CPU, from Python."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def print_version(ctx: click.Context) -> None:
    """Print the version, and end."""
    click.echo(f"flashllm {version()}")
    ctx.exit()


def version() -> str:
    """The installed version; "(not installed)" in a checkout run as it is."""
    from importlib import metadata

    try:
        return metadata.version("flashllm")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (default: sys.argv); returns the exit code."""
    _speak_utf8()
    try:
        result: Any = cli.main(args=args, prog_name="flashllm", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "flashllm"
        return _fail(f"{error.format_message()} See `{command} --help`.", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except FlashError as error:
        return _fail(str(error), error.exit_code)
    except MemoryError:
        return _fail("this computer is out of memory; close something", OutOfBudget.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (ReaderLeft, BrokenPipeError):  # as with `| head`
        _forget_stdout()
        return BROKEN_PIPE


def _fail(message: str, code: int) -> int:
    one_line = " ".join(message.split())
    with contextlib.suppress(OSError):
        click.echo(f"flashllm: error: {one_line}", err=True)
    return code


def _speak_utf8() -> None:
    """Models write every script; a Windows console's code page cannot."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(encoding="utf-8", errors="replace")


def _forget_stdout() -> None:
    """Point standard output nowhere, so that Python's exit does not fail to flush it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
