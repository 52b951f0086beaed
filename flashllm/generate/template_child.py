"""The child process that renders untrusted chat templates: one JSON request and answer a line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import IO, Any

from flashllm.generate.jinja_env import TemplateRefusal, render

if sys.platform != "win32":  # there the parent alone watches memory and time
    import resource

MAX_OUTPUT = 16 << 20


def serve(requests: IO[str], answers: IO[str], *, memory_bytes: int, cpu_s: int) -> None:
    """Answer requests until they end.

    A request is {"source": str, "variables": {...}}; its answer is {"text": str}, or {"refused":
    why} when the template objects to the messages, or {"broken": why}. The first line, before any
    request, is {"ready": true}: starting Python does not count against a template's time.
    """
    _limit("RLIMIT_AS", memory_bytes)
    _send(answers, {"ready": True})
    for line in requests:
        _limit("RLIMIT_CPU", int(time.process_time()) + cpu_s)  # ends us even without a parent
        _send(answers, answer(json.loads(line)))


def answer(request: dict[str, Any]) -> dict[str, str]:
    """The answer to one request. Never raises for anything that a template does."""
    try:
        text = render(request["source"], request["variables"])
    except TemplateRefusal as error:
        return {"refused": str(error)[:500]}
    except Exception as error:
        return {"broken": f"{type(error).__name__}: {error}"[:500]}
    if len(text) > MAX_OUTPUT:
        return {"broken": f"its output has {len(text)} characters"}
    return {"text": text}


def _limit(name: str, value: int) -> None:
    """Lower this process's own limit, where the system has such a limit and lets us."""
    if sys.platform != "win32":
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (value, hard))


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def main() -> None:
    """Entry point: arguments are the memory limit in bytes and the CPU time of a request in s."""
    serve(sys.stdin, sys.stdout, memory_bytes=int(sys.argv[1]), cpu_s=int(sys.argv[2]))
