"""Run language models larger than your RAM, on the CPU, from Python.

Names are imported when first used: `import flashllm` alone costs a millisecond.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashllm import errors
    from flashllm.api import calibrate, load, plan, prune, pull
    from flashllm.errors import FlashError
    from flashllm.generate.events import Done, Prefill, Stats, Token
    from flashllm.llm import LLM, Message, Session
    from flashllm.model.plan import Plan

_HOMES = {
    "Done": "flashllm.generate.events",
    "FlashError": "flashllm.errors",
    "LLM": "flashllm.llm",
    "Message": "flashllm.llm",
    "Prefill": "flashllm.generate.events",
    "Session": "flashllm.llm",
    "Stats": "flashllm.generate.events",
    "Token": "flashllm.generate.events",
    "Plan": "flashllm.model.plan",
    "calibrate": "flashllm.api",
    "load": "flashllm.api",
    "plan": "flashllm.api",
    "prune": "flashllm.api",
    "pull": "flashllm.api",
}

__all__ = [
    "LLM",
    "Done",
    "FlashError",
    "Message",
    "Plan",
    "Prefill",
    "Session",
    "Stats",
    "Token",
    "calibrate",
    "errors",
    "load",
    "plan",
    "prune",
    "pull",
]


def __getattr__(name: str) -> object:
    if name == "errors":
        return importlib.import_module("flashllm.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'flashllm' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
