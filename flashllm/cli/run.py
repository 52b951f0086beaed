"""flashllm run: answer one prompt and exit."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashllm.cli.options import (
    EngineOptions,
    SamplingOptions,
    engine_options,
    existing_file,
    json_option,
    sampling_options,
    session_option,
    stats_option,
    system_prompt_option,
)
from flashllm.cli.report import Report
from flashllm.errors import InvalidInput

if TYPE_CHECKING:
    from flashllm.generate.reply import Reply


@click.command("run")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("-f", "--file", metavar="FILE", help="Take the prompt from FILE.")
@click.option("--raw", is_flag=True, help="Continue the text as it is: no chat template.")
@engine_options
@sampling_options
@system_prompt_option
@session_option
@json_option
@stats_option
def command(
    prompt: str | None,
    file: str | None,
    raw: bool,
    engine: EngineOptions,
    sampling: SamplingOptions,
    system: str | None,
    session_file: Path | None,
    as_json: bool,
    stats: bool,
) -> None:
    """Answer one prompt on standard output, through the model's chat template.

    \b
      flashllm run -p "Name three colours."
      flashllm run --raw -p "Once upon a time" -n 100 --temp 0.8
    """
    text = the_prompt(prompt, file)
    if raw and (system is not None or session_file is not None):
        raise InvalidInput("--raw continues a text; --system-prompt and --session belong to chats")
    from flashllm.cli import opening
    from flashllm.cli.figures import reply_line
    from flashllm.cli.output import print_reply
    from flashllm.cli.settings import Settings
    from flashllm.hub.recommended import recommended

    with Report(quiet=as_json) as report:
        path = opening.locate(engine.model, engine.offline, report)
        options = Settings(sampling, recommended(path)).sampling()
        with opening.open_llm(path, engine, report) as llm:
            report.clear()
            session = None if raw else opening.open_session(llm, session_file, system)
            reply = session.stream(text, **options) if session else llm.complete(text, **options)
            if as_json:
                facts = {"model": llm.name, "sparse": llm.sparse}
                click.echo(json.dumps(facts | collect(reply)))
            else:
                end = print_reply(reply, report)
                if stats:
                    click.echo(reply_line(end.stats, llm.sparse), err=True)
            if session and session_file:
                session.save(session_file)


def collect(reply: Reply) -> dict[str, Any]:
    """The whole reply, as --json prints it."""
    text = reply.result()
    stats = dataclasses.asdict(reply.stats) if reply.stats else None
    return {"text": text, "reason": reply.reason, "stats": stats}


def the_prompt(prompt: str | None, file: str | None) -> str:
    """The text of -p or -f, or what is piped in. Raises InvalidInput if there is none, or two."""
    if prompt is not None and file is not None:
        raise InvalidInput("take the prompt from -p TEXT or from -f FILE, not both")
    if prompt is not None:
        text = prompt
    elif file is not None:
        text = existing_file(file).read_text(encoding="utf-8", errors="replace")
    elif not sys.stdin.isatty():
        text = sys.stdin.buffer.read().decode("utf-8", errors="replace")
    else:
        raise InvalidInput("there is no prompt; give it with -p TEXT or -f FILE")
    if not text.strip():
        raise InvalidInput("the prompt is empty")
    return text
