"""Compiles many kernels in a process of its own, whose memory goes when it ends.

The compiler keeps most of what it has worked with: 105 MB for the kernels of a model, which a
process with a memory limit would have to go without for as long as it runs.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from collections.abc import Collection
from typing import Protocol

from flashllm import machine
from flashllm.errors import OutOfBudget
from flashllm.sizes import format_size

FEW = 3
"""So many kernels are compiled sooner than a process for it is started. But not where memory is
short: the compiler, 100 MB of code, then has no room, is read again and again as it runs, and was
not done with one kernel in 300 s."""

COMPILER_BYTES = 180_000_000
"""What that process takes at most: 121 to 180 MB were measured."""

_LIMIT_S = 600


class Compilable(Protocol):
    """What can be compiled ahead: prepare() does it. name: "module:variable"."""

    @property
    def name(self) -> str: ...
    @property
    def is_compiled(self) -> bool: ...
    def prepare(self) -> None: ...


_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from flashllm.kernels.compiling import compile_here; compile_here(json.loads(sys.argv[2]))"
)


def compile_apart(ops: Collection[Compilable], few: int = 0) -> None:
    """Have the cache hold the native code of `ops`, if it does not, and if a process can be had.

    few: so many that are missing are left to be compiled when they are used. What fails is compiled
    then, too, in the process that uses it. Raises OutOfBudget where a container has too little
    memory for the compiler: the system would end it, or us.
    """
    missing = sorted(op.name for op in ops if not op.is_compiled)
    # In a frozen application sys.executable is that application, not Python.
    if len(missing) <= few or getattr(sys, "frozen", False) or not sys.executable:
        return
    free = machine.cgroup_memory_free()
    if free is not None and free < COMPILER_BYTES:
        raise OutOfBudget(
            f"{len(missing)} kernels are not compiled yet, which takes "
            f"{format_size(COMPILER_BYTES)} once on a computer, and this container has "
            f"{format_size(free)} left; run the model once with more memory, or share the cache of "
            "one where it has run (FLASHLLM_CACHE)"
        )
    arguments = [json.dumps(sys.path), json.dumps(missing)]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [sys.executable, "-I", "-c", _PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_LIMIT_S,
            check=False,
            creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
        )


def compile_here(names: Collection[str]) -> None:
    """Compile kernels by their names into the cache."""
    for name in names:
        module, _, function = name.partition(":")
        op: Compilable = getattr(importlib.import_module(module), function)
        op.prepare()
