"""flashllm chat: talk with a model."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flashllm.cli.options import (
    EngineOptions,
    SamplingOptions,
    engine_options,
    sampling_options,
    session_option,
    stats_option,
    system_prompt_option,
)
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput
from flashllm.hub.manifests import DEFAULT_MODEL

if TYPE_CHECKING:
    from flashllm.cli.settings import Settings
    from flashllm.llm import LLM, Session


@click.command("chat")
@click.argument("named", metavar="[MODEL]", required=False)
@engine_options
@sampling_options
@system_prompt_option
@session_option
@stats_option
def command(
    named: str | None,
    engine: EngineOptions,
    sampling: SamplingOptions,
    system: str | None,
    session_file: Path | None,
    stats: bool,
) -> None:
    """Talk with a model: type, and it answers. /help lists what else you can type.

    Input from a pipe is one message: it is answered on standard output, and that is all.

    \b
      flashllm chat
      flashllm chat path/to/model.gguf
      echo "What is the capital of France?" | flashllm chat
    """
    if named is not None:
        if engine.model != DEFAULT_MODEL:
            raise InvalidInput(f"two models: {named} and -m {engine.model}; name one")
        engine = dataclasses.replace(engine, model=named)
    interactive = sys.stdin.isatty()
    message = "" if interactive else read_stdin()
    from flashllm.cli import opening
    from flashllm.cli.figures import reply_line
    from flashllm.cli.output import print_reply
    from flashllm.cli.settings import Settings
    from flashllm.hub.recommended import recommended

    with Report() as report:
        path = opening.locate(engine.model, engine.offline, report)
        settings = Settings(sampling, recommended(path))
        with opening.open_llm(path, engine, report) as llm:
            report.clear()
            session = opening.open_session(llm, session_file, system)
            if interactive:
                session = converse(llm, session, settings)
            else:
                done = print_reply(session.stream(message, **settings.sampling()), report)
                if stats:
                    click.echo(reply_line(done.stats, llm.sparse), err=True)
            if session_file:
                session.save(session_file)


def read_stdin() -> str:
    """All of standard input as one message. Raises InvalidInput if there is nothing in it."""
    message = sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    if not message:
        raise InvalidInput("standard input is empty; there is no message to answer")
    return message


def converse(llm: LLM, session: Session, settings: Settings) -> Session:
    """Talk until the user leaves; returns the session the talk ended in (/load may change it)."""
    from flashllm.cli.commands import Composer
    from flashllm.cli.conversation import Conversation
    from flashllm.cli.terminal import Terminal

    terminal = Terminal()
    conversation = Conversation(llm, session, terminal, settings)
    composer = Composer()
    terminal.note(f"{llm.name}. /help lists what you can type, Ctrl-D leaves.")
    while True:
        try:
            item = composer.feed(terminal.ask(more=composer.open))
        except InvalidInput as error:
            terminal.note(f"error: {error}")
            continue
        except KeyboardInterrupt:
            composer.abandon()
            terminal.note("(Ctrl-D or /bye leaves)")
            continue
        except EOFError:
            return conversation.session
        if item and not conversation.handle(item):
            return conversation.session
