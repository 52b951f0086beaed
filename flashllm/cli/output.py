"""A model's words on their way out."""

from __future__ import annotations

import sys

from flashllm.cli.report import Report
from flashllm.errors import EngineError
from flashllm.generate.events import Done, Prefill, Token
from flashllm.generate.reply import Reply

# A model may write anything; a terminal must not obey it. Newline and tab stay.
_HARMLESS = dict.fromkeys(
    {*range(32), *range(127, 160)} - {ord("\n"), ord("\t")}, "\N{REPLACEMENT CHARACTER}"
)


def harmless(text: str) -> str:
    """`text` without characters that a terminal takes for orders."""
    return text.translate(_HARMLESS)


def write(text: str) -> None:
    """Print a piece of a reply at once; a file or a pipe gets it as it is."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def print_reply(reply: Reply, report: Report) -> Done:
    """Print `reply` as it comes, ending the last line. Raises what the reply raises."""
    report.stage("reading the prompt")
    ends_line = True
    for event in reply:
        if isinstance(event, Prefill):
            report.progress(event.done, event.total)
        elif isinstance(event, Token):
            report.clear()
            write(event.text)
            ends_line = event.text.endswith("\n")
        elif isinstance(event, Done):
            report.clear()
            if not ends_line:
                write("\n")
            return event
    raise EngineError("the reply broke off without an end")
