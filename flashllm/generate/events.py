"""What a reply reports while it is made: the only things that cross from engine to caller."""

from __future__ import annotations

import dataclasses
from typing import Literal

Reason = Literal["stop", "length", "context", "cancelled"]


@dataclasses.dataclass(frozen=True)
class Stats:
    """What a reply cost.

    ttft_s: seconds from the call to the first token, waiting for other replies included; None if
    there was no token. prompt_tokens: length of the prompt, of which cached_tokens were still in
    the KV cache. generated_tokens: tokens sampled. prefill_tok_s, decode_tok_s: tokens per second
    of reading the prompt and of generating, 0.0 where there was nothing to time. context_tokens:
    tokens now in the KV cache, of n_ctx. seed: gives the same reply again.

    weights_read_bytes: read from flash for the prompt and the reply, of which
    weights_read_per_token for each token but the first, on average. hit_rate: the share of the
    weights used that were in memory already, 1.0 where all stay there. wait_s: seconds that steps
    waited for those reads. compute_s: seconds that they took otherwise.

    active_share: of a model that runs sparse, the share of its neurons that were computed for a
    token; None where all were. neurons_read_per_token: bytes of neurons read for each token but the
    first, on average, those read in vain included. manage_s: seconds, of compute_s, spent on
    choosing neurons and looking them up.

    rss_bytes: memory of the whole process, of which the system could drop all but private_bytes.
    mem_budget: bytes that those may be, None for no limit. bytes_read, bytes_written: the process's
    disk traffic during the reply, None where the system does not count it.

    guessed_tokens: by a draft model, of which accepted_tokens were right. draft_s: seconds that the
    draft took, which other figures do not count.
    """

    ttft_s: float | None
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_tok_s: float
    decode_tok_s: float
    context_tokens: int
    n_ctx: int
    seed: int
    weights_read_bytes: int
    weights_read_per_token: float
    hit_rate: float
    wait_s: float
    compute_s: float
    active_share: float | None
    neurons_read_per_token: float
    manage_s: float
    rss_bytes: int
    private_bytes: int
    mem_budget: int | None
    bytes_read: int | None
    bytes_written: int | None
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    draft_s: float = 0.0


@dataclasses.dataclass(frozen=True)
class Prefill:
    """The prompt is being read: `done` of `total`, in units of one token through one layer."""

    done: int
    total: int


@dataclasses.dataclass(frozen=True)
class Token:
    """The next piece of the reply.

    text is never empty and never splits a character. id is the last token that went into it:
    bytes of an unfinished character, text that may become a stop text, and pieces that nobody
    read in time arrive together with a later token.
    """

    text: str
    id: int


@dataclasses.dataclass(frozen=True)
class Done:
    """The reply is over, and why.

    reason: "stop" (the model ended it, or a stop text came), "length" (max_tokens), "context"
    (the context is full) or "cancelled".
    """

    stats: Stats
    reason: Reason


Event = Prefill | Token | Done
