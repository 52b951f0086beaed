"""A block: how attention and feed-forward join the residual stream."""

from __future__ import annotations

import dataclasses
from typing import Protocol

from flashllm.kernels.program import Program
from flashllm.kernels.weights import Floats
from flashllm.layers.attention import Attention
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.ffn import FeedForward
from flashllm.layers.norm import Norm


class RecordFFN(Protocol):
    """Records out (+)= what neurons give for s.ffn_in."""

    def __call__(
        self, program: Program, s: StepBuffers, out: Floats, *, accumulate: bool
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class Block:
    """x += attention(norm(x)); x += ffn(norm(x)).

    Without a norm a branch reads x itself. With a post-norm, what the branch gives is normed before
    it is added. In a parallel block both branches read the x that entered it.
    """

    attention: Attention
    ffn: FeedForward
    attention_norm: Norm | None
    ffn_norm: Norm | None
    attention_post_norm: Norm | None = None
    ffn_post_norm: Norm | None = None
    parallel: bool = False

    def record(self, program: Program, s: StepBuffers) -> None:
        """One layer over s.x."""
        self.record_attention(program, s)
        self.record_ffn(program, s, self.ffn.record)

    def record_attention(self, program: Program, s: StepBuffers) -> None:
        """The layer as far as s.ffn_in, which the feed-forward reads."""
        _read(program, s, self.attention_norm, s.attention_in.values)
        if self.parallel:
            self.record_ffn_in(program, s)
        out, accumulate = self._target(s, self.attention_post_norm)
        self.attention.record(program, s, out, accumulate=accumulate)
        if self.attention_post_norm:
            self.attention_post_norm.record(program, s.branch, s.x, accumulate=True)
        if not self.parallel:
            self.record_ffn_in(program, s)

    def record_ffn_in(self, program: Program, s: StepBuffers) -> None:
        """s.ffn_in from the residual stream as it is."""
        _read(program, s, self.ffn_norm, s.ffn_in.values)

    def record_ffn(
        self,
        program: Program,
        s: StepBuffers,
        record: RecordFFN,
        *,
        first: bool = True,
        last: bool = True,
    ) -> None:
        """The rest of the layer, or a part of it: `record` adds what some neurons give.

        first, last: whether no neurons come before those, or after.
        """
        out, accumulate = self._target(s, self.ffn_post_norm)
        record(program, s, out, accumulate=accumulate or not first)
        if self.ffn_post_norm and last:
            self.ffn_post_norm.record(program, s.branch, s.x, accumulate=True)

    def _target(self, s: StepBuffers, post_norm: Norm | None) -> tuple[Floats, bool]:
        """Where a branch puts its result, and whether it adds it to what is there."""
        return (s.x, True) if post_norm is None else (s.branch, False)


def _read(program: Program, s: StepBuffers, norm: Norm | None, into: Floats) -> None:
    if norm:
        norm.record(program, s.x, into)
    else:
        program.copy(s.x, s.hidden, into)
