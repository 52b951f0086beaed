"""The products of dense.py and feed_forward.py over tiles that are stored as bitmaps.

One op per kernel and dtype: a program names the one it needs, and only those are compiled.
"""

from __future__ import annotations

from flashllm.kernels import jit
from flashllm.kernels.cpu.dense import matmul, matmul_fine
from flashllm.kernels.cpu.feed_forward import ffn_down, ffn_hidden
from flashllm.kernels.cpu.tiles import BF16_BITMAP, F16_BITMAP, Q4_BITMAP, Q8_BITMAP


@jit.op
def matmul_f16(args, rows, thread, threads):
    matmul(F16_BITMAP, args, rows, thread, threads)


@jit.op
def matmul_bf16(args, rows, thread, threads):
    matmul(BF16_BITMAP, args, rows, thread, threads)


@jit.op
def matmul_q8(args, rows, thread, threads):
    matmul(Q8_BITMAP, args, rows, thread, threads)


@jit.op
def matmul_q4(args, rows, thread, threads):
    matmul(Q4_BITMAP, args, rows, thread, threads)


@jit.op
def matmul_fine_q8(args, rows, thread, threads):
    matmul_fine(Q8_BITMAP, args, rows, thread, threads)


@jit.op
def matmul_fine_q4(args, rows, thread, threads):
    matmul_fine(Q4_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_hidden_f16(args, rows, thread, threads):
    ffn_hidden(F16_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_hidden_bf16(args, rows, thread, threads):
    ffn_hidden(BF16_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_hidden_q8(args, rows, thread, threads):
    ffn_hidden(Q8_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_hidden_q4(args, rows, thread, threads):
    ffn_hidden(Q4_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_down_f16(args, rows, thread, threads):
    ffn_down(F16_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_down_bf16(args, rows, thread, threads):
    ffn_down(BF16_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_down_q8(args, rows, thread, threads):
    ffn_down(Q8_BITMAP, args, rows, thread, threads)


@jit.op
def ffn_down_q4(args, rows, thread, threads):
    ffn_down(Q4_BITMAP, args, rows, thread, threads)
