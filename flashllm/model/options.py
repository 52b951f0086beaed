"""How to open a model: what of this computer it may use."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal, TypedDict, get_args

from flashllm import machine
from flashllm.cache.policy import SPARSE_ROWS
from flashllm.errors import InvalidInput
from flashllm.model.config import ModelConfig
from flashllm.model.memory import KVDtype
from flashllm.model.plan import DEFAULT_CONTEXT, bytes_allowed

Backend = Literal["cpu", "reference"]
IOMode = Literal["auto", "direct", "pread", "mmap"]
Sparse = Literal["predictor", "oracle", "gate"]

MOST_GUESSES = 31
"""Tokens to guess for a step: of more, the last ones are hardly ever right."""


class LoadArguments(TypedDict, total=False):
    """Keyword arguments that make LoadOptions."""

    mem_budget: int | str | None
    n_ctx: int | None
    threads: int | None
    backend: Backend
    kv_dtype: KVDtype | None
    io: IOMode
    sparse: Sparse | None
    window: int | None
    draft: str | Path | None
    draft_tokens: int


@dataclasses.dataclass(frozen=True)
class LoadOptions:
    """How to open a model.

    mem_budget: what this process may use in all: bytes, or text such as "6GB" or "0.5x" (of the
    weights), or "auto": what is free now, following what other programs leave. None sets no limit.
    What of the weights does not fit is read from flash as it is needed. n_ctx: tokens of context
    that there must be room for, by default DEFAULT_CONTEXT. threads: by default one for each
    physical core. backend: "reference" computes slowly, in numpy. kv_dtype: what keys and values
    are kept in, by default the backend's own ("f16" for cpu). io: how files are read: "direct",
    past the system's page cache, "pread", through it, or "mmap"; "auto" chooses.

    sparse: compute only feed-forward neurons that fire, of a model of codec `row` whose activation
    is zero for most. "predictor": those that the model's calibrated predictors expect, which loses
    a little; "gate": exactly those, known from gate rows that stay in memory (of a network without
    gates, up rows); "oracle": the same, with memory beside the budget for these rows, to compare
    with. window: how many tokens long neurons that fired stay in memory, at most; None: as long as
    there is room.

    draft: a small model with the same tokeniser, which guesses tokens that this one then checks,
    several in one step; the replies are the same. draft_tokens: how many to guess for a step.
    """

    mem_budget: int | str | None = "auto"
    n_ctx: int | None = None
    threads: int | None = None
    backend: Backend = "cpu"
    kv_dtype: KVDtype | None = None
    io: IOMode = "auto"
    sparse: Sparse | None = None
    window: int | None = None
    draft: str | Path | None = None
    draft_tokens: int = 4

    def __post_init__(self) -> None:
        """Raises InvalidInput for what no model could be opened with."""
        if self.kv_dtype not in (None, *get_args(KVDtype)):
            raise InvalidInput(f"keys and values in {self.kv_dtype!r}: choose f16, f32 or q8")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise InvalidInput(f"{self.threads} threads: choose 1 to 1024")
        if self.sparse not in (None, *get_args(Sparse)):
            raise InvalidInput(f"sparse {self.sparse!r}: choose predictor, oracle or gate")
        if self.window is not None and self.window < 0:
            raise InvalidInput(f"a window of {self.window} tokens: choose 0 or more")
        if self.window is not None and self.sparse is None:
            raise InvalidInput("a window of tokens is for sparse models; say which way (--sparse)")
        most = MOST_GUESSES if self.sparse is None else SPARSE_ROWS - 1
        if self.draft is not None and not 1 <= self.draft_tokens <= most:
            which = "" if self.sparse is None else " for a model that runs sparse"
            raise InvalidInput(f"{self.draft_tokens} drafted tokens: choose 1 to {most}{which}")

    def arguments(self) -> LoadArguments:
        """The keyword arguments that make these options."""
        return LoadArguments(
            mem_budget=self.mem_budget,
            n_ctx=self.n_ctx,
            threads=self.threads,
            backend=self.backend,
            kv_dtype=self.kv_dtype,
            io=self.io,
            sparse=self.sparse,
            window=self.window,
            draft=self.draft,
            draft_tokens=self.draft_tokens,
        )

    def budget(self, weights: int) -> int | None:
        """The bytes that this process may use, for a model of so many bytes of weights.

        Raises InvalidInput for text that is no size.
        """
        if self.mem_budget is None:
            return None
        if self.mem_budget == "auto":
            return machine.auto_budget(machine.memory(), machine.private_rss())
        return bytes_allowed(self.mem_budget, weights)

    def context(self, config: ModelConfig) -> int:
        """Tokens of context to have room for. Raises InvalidInput beyond what the model can."""
        most = config.context_length
        if self.n_ctx is not None and not 0 < self.n_ctx <= most:
            raise InvalidInput(
                f"a context of {self.n_ctx} tokens; this model was made for 1 to {most}"
            )
        return self.n_ctx or min(DEFAULT_CONTEXT, most)
