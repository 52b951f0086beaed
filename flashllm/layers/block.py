"""A block: how attention and feed-forward join the residual stream."""

from __future__ import annotations

import dataclasses

from flashllm.kernels.program import Program
from flashllm.kernels.weights import Floats
from flashllm.layers.attention import Attention
from flashllm.layers.buffers import StepBuffers
from flashllm.layers.ffn import FeedForward
from flashllm.layers.norm import Norm


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
        _read(program, s, self.attention_norm, s.attention_in.values)
        if self.parallel:
            _read(program, s, self.ffn_norm, s.ffn_in.values)
        _add(program, s, self.attention, self.attention_post_norm)
        if not self.parallel:
            _read(program, s, self.ffn_norm, s.ffn_in.values)
        _add(program, s, self.ffn, self.ffn_post_norm)


def _read(program: Program, s: StepBuffers, norm: Norm | None, into: Floats) -> None:
    if norm:
        norm.record(program, s.x, into)
    else:
        program.copy(s.x, s.hidden, into)


def _add(
    program: Program, s: StepBuffers, branch: Attention | FeedForward, post_norm: Norm | None
) -> None:
    if post_norm is None:
        branch.record(program, s, s.x, accumulate=True)
    else:
        branch.record(program, s, s.branch, accumulate=False)
        post_norm.record(program, s.branch, s.x, accumulate=True)
