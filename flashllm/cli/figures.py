"""Figures for human eyes: what a reply cost, what a conversation did, what memory holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flashllm import machine
from flashllm.generate.events import Stats
from flashllm.sizes import format_size

if TYPE_CHECKING:
    from flashllm.llm import LLM
    from flashllm.model.options import Sparse


def reply_line(stats: Stats, sparse: Sparse | None = None) -> str:
    """One line for a reply of a model that runs sparse this way, if it does."""
    limit = f"/{stats.mem_budget / 1e9:.2f}" if stats.mem_budget else ""
    parts = [
        "no first token" if stats.ttft_s is None else f"ttft {stats.ttft_s:.2f} s",
        f"{stats.prompt_tokens} tok in ({stats.cached_tokens} cached)",
        f"{stats.generated_tokens} out",
        f"{speed(stats.decode_tok_s)} tok/s",
        f"RAM {stats.private_bytes / 1e9:.2f}{limit} GB",
        f"hit {percent(stats.hit_rate)}",
        *([f"read {format_size(stats.weights_read_per_token)}/tok"] if _streams(stats) else []),
        f"wrote {'?' if stats.bytes_written is None else format_size(stats.bytes_written)}",
        *([_guesses(stats)] if stats.guessed_tokens else []),
        *([how_sparse(sparse), *_sparse_parts(stats)] if sparse else []),
    ]
    return " · ".join(parts)


def how_sparse(sparse: str) -> str:
    """How a model runs sparse, and whether that changes what it says."""
    return f"sparse: {sparse} ({'lossy' if sparse == 'predictor' else 'exact'})"


def _sparse_parts(stats: Stats) -> list[str]:
    if stats.active_share is None:
        return []
    return [
        f"active {percent(stats.active_share)}",
        f"new {format_size(stats.neurons_read_per_token)}/tok",
        f"managed in {1e3 * stats.manage_s:.0f} ms",
    ]


def speed(tok_s: float) -> str:
    """Tokens per second, also of a model that takes seconds for one."""
    return f"{tok_s:.0f}" if tok_s >= 99.5 else f"{tok_s:.3g}"


def percent(share: float) -> str:
    """A share in percent; 100% is all of it, not nearly."""
    return "100%" if share >= 1 else f"{min(99.9, 100 * share):.3g}%"


@dataclasses.dataclass
class Totals:
    """The sum of a conversation's replies. sparse: how the model runs sparse, if it does."""

    sparse: Sparse | None = None
    replies: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    decode_s: float = 0.0
    weights_read_bytes: int = 0
    wait_s: float = 0.0
    compute_s: float = 0.0
    manage_s: float = 0.0
    last: Stats | None = None

    def add(self, stats: Stats) -> None:
        """Count one more reply."""
        self.replies += 1
        self.prompt_tokens += stats.prompt_tokens
        self.cached_tokens += stats.cached_tokens
        self.generated_tokens += stats.generated_tokens
        self.weights_read_bytes += stats.weights_read_bytes
        self.wait_s += stats.wait_s
        self.compute_s += stats.compute_s
        self.manage_s += stats.manage_s
        if stats.decode_tok_s:
            self.decode_s += stats.generated_tokens / stats.decode_tok_s
        self.last = stats

    def describe(self) -> str:
        """The sums, and more of the last reply than its own line tells."""
        if self.last is None:
            return "no reply yet"
        last = self.last
        rate = self.generated_tokens / self.decode_s if self.decode_s else 0.0
        hits = f"hit {percent(last.hit_rate)} at last"
        return "\n".join(
            [
                f"replies          {self.replies}",
                f"tokens read      {self.prompt_tokens - self.cached_tokens}"
                f" (and {self.cached_tokens} kept from earlier turns)",
                f"tokens written   {self.generated_tokens}, {rate:.1f} tok/s",
                f"weights          {format_size(self.weights_read_bytes)} read from disk, {hits}",
                f"time             {self.compute_s:.1f} s computing, {self.wait_s:.1f} s waiting "
                "for the disk",
                f"context          {last.context_tokens} of {last.n_ctx} tokens",
                f"last reply       prompt at {last.prefill_tok_s:.0f} tok/s, reply at "
                f"{last.decode_tok_s:.1f} tok/s, seed {last.seed}",
                *self._sparse_lines(last),
            ]
        )

    def _sparse_lines(self, last: Stats) -> list[str]:
        if not self.sparse:
            return []
        lines = [f"neurons          {how_sparse(self.sparse)}"]
        if last.active_share is not None:
            lines[0] += (
                f", {percent(last.active_share)} active at last, "
                f"{format_size(last.neurons_read_per_token)} of new ones a token"
            )
            lines.append(f"managing         {self.manage_s:.1f} s of the computing")
        return lines


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
        *([("neurons", how_sparse(llm.sparse))] if llm.sparse else []),
    ]
    return "\n".join(f"{label:<16} {text}" for label, text in rows)


def memory_lines(llm: LLM) -> str:
    """What memory holds. The limit is for private memory: the system may drop what is of files."""
    limit = llm.mem_budget
    rows = [
        ("held now", f"{format_size(machine.rss())}, {format_size(machine.private_rss())} private"),
        ("held at most", format_size(machine.peak_rss())),
        ("limit", format_size(limit) if limit else "none"),
        ("weights", format_size(llm.weight_bytes)),
        ("KV cache", f"{format_size(llm.kv_bytes)} of {llm.kv_dtype} once the context is full"),
    ]
    return "\n".join(f"{label:<16} {text}" for label, text in rows)


def _guesses(stats: Stats) -> str:
    return f"{stats.accepted_tokens} of {stats.guessed_tokens} guesses right"


def _streams(stats: Stats) -> bool:
    return stats.hit_rate < 1 or stats.weights_read_bytes > 0
