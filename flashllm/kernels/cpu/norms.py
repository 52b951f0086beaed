"""Norms: RMSNorm and LayerNorm of whole rows, or of each of several groups in a row."""

from __future__ import annotations

import math

from numba import float32

from flashllm.kernels import jit
from flashllm.kernels.cpu.panels import put
from flashllm.kernels.cpu.work import share, unpack
from flashllm.kernels.simd import (
    add,
    float_from_bits,
    fma,
    keep_first,
    load_f32,
    mul,
    splat,
    sub,
    sum_lanes,
    zero,
)

# Rows are padded with zeros to whole vectors. Weights are too, so what is written there is zero.


@jit.inline
def _inverse_root(squares, width, eps):
    """1 / sqrt(mean of squares + eps), in every lane."""
    mean = float32(sum_lanes(squares) / float32(width))
    return splat(float32(float32(1.0) / math.sqrt(float32(mean + eps))))


@jit.inline
def _write(row, mean, inverse, weight, bias, bias_step, to, nbytes, accumulate):
    """to (+)= (row - mean) * inverse * weight + bias."""
    for i in range(0, nbytes, 64):
        normed = mul(mul(sub(load_f32(row + i), mean), inverse), load_f32(weight + i))
        put(to + i, add(normed, load_f32(bias + bias_step * i)), accumulate)


@jit.op
def rms_norm(args, rows, thread, threads):
    x, x_stride, groups, width, weight, bias, bias_step = unpack(args, 7)
    eps_bits, accumulate, out, stride = unpack(args + 56, 4)
    eps = float_from_bits(eps_bits)
    vectors = (width + 15) >> 4
    first, last = share(rows * groups, thread, threads)
    for task in range(first, last):
        t = task // groups
        at = 4 * (task - t * groups) * width
        row = x + 4 * t * x_stride + at
        even, odd = zero(), zero()
        for i in range(0, 64 * (vectors - 1), 128):
            v = load_f32(row + i)
            even = fma(v, v, even)
            v = load_f32(row + i + 64)
            odd = fma(v, v, odd)
        if vectors & 1:
            v = load_f32(row + 64 * (vectors - 1))
            even = fma(v, v, even)
        inverse = _inverse_root(add(even, odd), width, eps)
        to = out + 4 * t * stride + at
        _write(
            row,
            zero(),
            inverse,
            weight + at,
            bias + bias_step * at,
            bias_step,
            to,
            64 * vectors,
            accumulate,
        )


@jit.op
def layer_norm(args, rows, thread, threads):
    """Two passes before the last: the mean, then the squares of what deviates from it."""
    x, x_stride, groups, width, weight, bias, bias_step = unpack(args, 7)
    eps_bits, accumulate, out, stride = unpack(args + 56, 4)
    eps = float_from_bits(eps_bits)
    vectors = (width + 15) >> 4
    first, last = share(rows * groups, thread, threads)
    for task in range(first, last):
        t = task // groups
        at = 4 * (task - t * groups) * width
        row = x + 4 * t * x_stride + at
        total = zero()
        for i in range(vectors):
            total = add(total, load_f32(row + 64 * i))
        mean = splat(float32(sum_lanes(total) / float32(width)))
        squares = zero()
        for i in range(vectors):
            deviation = sub(load_f32(row + 64 * i), mean)
            deviation = keep_first(deviation, width - 16 * i, zero())
            squares = fma(deviation, deviation, squares)
        inverse = _inverse_root(squares, width, eps)
        to = out + 4 * t * stride + at
        _write(
            row,
            mean,
            inverse,
            weight + at,
            bias + bias_step * at,
            bias_step,
            to,
            64 * vectors,
            accumulate,
        )
