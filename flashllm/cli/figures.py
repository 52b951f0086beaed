"""Figures for human eyes: what a reply cost, what a conversation did, what memory holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flashllm import machine
from flashllm.generate.events import Stats
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.llm import LLM


def reply_line(stats: Stats, limit_bytes: int | None) -> str:
    """One line for a reply. Every weight is in memory in this version, so every fetch hits."""
    held, limit = stats.rss_bytes / 1e9, f"/{limit_bytes / 1e9:.2f}" if limit_bytes else ""
    parts = [
        "no first token" if stats.ttft_s is None else f"ttft {stats.ttft_s:.2f} s",
        f"{stats.prompt_tokens} tok in ({stats.cached_tokens} cached)",
        f"{stats.generated_tokens} out",
        f"{stats.decode_tok_s:.0f} tok/s",
        f"RAM {held:.2f}{limit} GB",
        "hit 100%",
        f"read {_traffic(stats.bytes_read)}",
        f"wrote {_traffic(stats.bytes_written)}",
    ]
    return " · ".join(parts)


@dataclasses.dataclass
class Totals:
    """The sum of a conversation's replies."""

    replies: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    decode_s: float = 0.0
    last: Stats | None = None

    def add(self, stats: Stats) -> None:
        """Count one more reply."""
        self.replies += 1
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        self.generated_tokens += stats.generated_tokens
        if stats.decode_tok_s:
            self.decode_s += stats.generated_tokens / stats.decode_tok_s
        self.last = stats

    def describe(self) -> str:
        """The sums, and more of the last reply than its own line tells."""
        if self.last is None:
            return "no reply yet"
        last = self.last
        speed = self.generated_tokens / self.decode_s if self.decode_s else 0.0
        return "\n".join(
            [
                f"replies          {self.replies}",
                f"tokens read      {self.prompt_tokens - self.cached_tokens}"
                f" (and {self.cached_tokens} kept from earlier turns)",
                f"tokens written   {self.generated_tokens}, {speed:.1f} tok/s",
                f"context          {last.context_tokens} of {last.n_ctx} tokens",
                f"last reply       prompt at {last.prefill_tok_s:.0f} tok/s, reply at "
                f"{last.decode_tok_s:.1f} tok/s, seed {last.seed}",
            ]
        )


def model_lines(llm: LLM) -> str:
    """What the model is."""
    config = llm.config
    shape = f"{config.n_layers} layers of {config.hidden_size}, {config.attention.heads} heads"
    kv_heads = config.attention.kv_heads
    shared = f" on {kv_heads} keys" if kv_heads != config.attention.heads else ""
    rows = [
        ("model", f"{llm.name}, {config.family} family"),
        ("shape", f"{shape}{shared}, vocabulary of {config.vocab_size}"),
        ("context", f"{llm.n_ctx} tokens here, {config.context_length} at most"),
        ("weights", format_size(llm.weight_bytes)),
    ]
    return "\n".join(f"{label:<16} {text}" for label, text in rows)


def memory_lines(llm: LLM) -> str:
    """What memory holds. Private and file-backed memory apart: the system may drop the latter."""
    held, shared, limit = machine.rss(), machine.file_backed_rss(), llm.mem_budget
    split = f", of which {format_size(shared)} file-backed" if shared is not None else ""
    rows = [
        ("held now", f"{format_size(held)}{split}"),
        ("held at most", format_size(machine.peak_rss())),
        ("limit", format_size(limit) if limit else "none"),
        ("weights", format_size(llm.weight_bytes)),
        ("KV cache", f"{format_size(llm.kv_bytes)} of {llm.kv_dtype} once the context is full"),
    ]
    return "\n".join(f"{label:<16} {text}" for label, text in rows)


def _traffic(count: int | None) -> str:
    return "?" if count is None else format_size(count)
