"""Rendering chat templates that nobody has vetted: in a child process with limits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import psutil  # type: ignore[import-untyped, unused-ignore]

from flashllm.errors import CorruptModel, InvalidInput, UnsupportedModel

TIME_LIMIT_S = 2.0
START_LIMIT_S = 20.0
MEMORY_LIMIT = 256 << 20
"""Resident bytes of the child, watched by the parent on every system."""
ADDRESS_SPACE_LIMIT = 512 << 20
"""The child's own limit where the system enforces one; it counts libraries and reserves too."""

_MAX_ANSWER = 128 << 20
_POLL_S = 0.01
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from flashllm.generate.template_child import main; main()"
)


class ChildRenderer:
    """Renders templates in a child process, kept alive between renders, one render at a time.

    Hostile templates cannot outlive TIME_LIMIT_S nor outgrow MEMORY_LIMIT; the child is then
    killed, and a later render starts another. Call close() when done.
    """

    def __init__(self, executable: str = sys.executable, frozen: bool | None = None) -> None:
        self._executable = executable
        # In a frozen application sys.executable is that application, not Python.
        self._frozen = bool(getattr(sys, "frozen", False)) if frozen is None else frozen
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """`source` rendered with `variables`.

        Raises InvalidInput if the template refuses the messages; CorruptModel if it is broken or
        hostile; UnsupportedModel where no child process can be had.
        """
        with self._lock:
            child = self._child if self._child and self._child.poll() is None else self._start()
            self._child = child
            answer = self._ask(child, {"source": source, "variables": variables})
        if "text" in answer:
            return str(answer["text"])
        if "refused" in answer:
            raise InvalidInput(f"the model's chat template refuses this: {answer['refused']}")
        raise CorruptModel(f"the model's chat template does not work: {answer.get('broken')}")

    def close(self) -> None:
        """End the child process, if there is one."""
        with self._lock:
            if self._child is not None:
                _end(self._child)
                self._child = None

    def _start(self) -> subprocess.Popen[bytes]:
        if self._frozen or not self._executable:
            raise UnsupportedModel(
                "this model's chat template is not one that flashllm ships, and a frozen "
                "application has no Python to render it apart; use a model with a ChatML template"
            )
        limits = [str(ADDRESS_SPACE_LIMIT), str(int(TIME_LIMIT_S) + 1)]
        child = subprocess.Popen(
            [self._executable, "-I", "-c", _PROGRAM, json.dumps(sys.path), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )
        if not _read(child, START_LIMIT_S).get("ready"):
            _end(child)
            raise UnsupportedModel(
                f"the chat template's process did not start ({self._executable}); "
                "is it a Python that can import jinja2?"
            )
        return child

    def _ask(self, child: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
        line = json.dumps(request).encode() + b"\n"
        return _read(child, TIME_LIMIT_S, line)


def _read(child: subprocess.Popen[bytes], limit_s: float, request: bytes = b"") -> dict[str, Any]:
    """Send `request` and read the answer; a child that exceeds its limits dies: {"broken": why}."""
    assert child.stdin is not None and child.stdout is not None
    done = threading.Event()
    verdict: list[str] = []
    watcher = threading.Thread(
        target=_watch, args=(child, done, limit_s, verdict), name="flashllm-template-watch"
    )
    watcher.start()
    try:
        child.stdin.write(request)
        child.stdin.flush()
        line = child.stdout.readline(_MAX_ANSWER)
        answer = json.loads(line) if line.endswith(b"\n") else {}
    except (OSError, ValueError):  # the pipe broke, or the answer is not JSON
        answer = {}
    finally:
        done.set()
        watcher.join()
    if not isinstance(answer, dict) or not answer:
        _end(child)
        return {"broken": verdict[0] if verdict else "its process died"}
    return answer


def _watch(
    child: subprocess.Popen[bytes], done: threading.Event, limit_s: float, verdict: list[str]
) -> None:
    """Kill `child` once it is over a limit, and say why in `verdict`."""
    deadline = time.monotonic() + limit_s
    while not done.wait(_POLL_S):
        if time.monotonic() > deadline:
            verdict.append(f"it took longer than {limit_s:.0f} s")
        elif _resident(child.pid) > MEMORY_LIMIT:
            verdict.append(f"it used more than {MEMORY_LIMIT >> 20} MiB")
        if verdict:
            child.kill()
            return


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:  # bytes that the dead child never read
                continue
